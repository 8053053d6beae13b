# Stages: front (nginx); packages -> build -> models -> cpu -> ray; gpu-build and gpu, from NVIDIA's images.
# What changes seldom stands first, so that a changed source builds no package and no engine anew:
# the engines depend on build_scripts/, backends/ and the recipes, not on server/ and clients/.
#
#   docker build --target cpu -t triton-multi-device:0.2.0-cpu .
#
# torch comes from the index that pip knows. The public one has wheels with CUDA's libraries only; to
# have a small image, name PyTorch's index of CPU wheels: --build-arg PIP_EXTRA_INDEX_URL=...

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG NGINX_IMAGE=nginx:1.28.0
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.10-py3
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:26.10-py3


FROM ${NGINX_IMAGE} AS front
LABEL org.opencontainers.image.title="triton-multi-device front" \
      org.opencontainers.image.description="nginx before Triton: TLS, limits, checked requests" \
      org.opencontainers.image.licenses="Apache-2.0"
# The official image has njs; a plain Debian has it in a package. openssl makes the pair to try TLS with.
RUN set --; test -f /usr/lib/nginx/modules/ngx_stream_js_module.so || set -- libnginx-mod-http-js libnginx-mod-stream-js; \
    command -v openssl >/dev/null || set -- "$@" openssl; \
    if [ $# -gt 0 ]; then apt-get update && apt-get install -y --no-install-recommends "$@" \
        && rm -rf /var/lib/apt/lists/* /var/cache/apt; fi
COPY deploy/nginx /opt/front
USER 10001:10001
EXPOSE 8000 8001 8004 8443
STOPSIGNAL SIGQUIT
ENTRYPOINT ["/opt/front/entrypoint.sh"]


FROM ${PYTHON_IMAGE} AS packages
ENV PYTHONUNBUFFERED=1 PATH=/opt/venv/bin:$PATH
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* /var/cache/apt
WORKDIR /srv
RUN python3 -m venv /opt/venv
COPY requirements-serving.txt requirements-embedded.txt requirements-gateway.txt ./
ARG PIP_EXTRA_INDEX_URL
RUN pip install --no-cache-dir --progress-bar off -r requirements-serving.txt -r requirements-embedded.txt -r requirements-gateway.txt \
    && rm -rf /opt/venv/lib/python3*/site-packages/torch/test /opt/venv/lib/python3*/site-packages/torch/bin/*[tT]est* \
        /opt/venv/lib/python3*/site-packages/onnx/backend/test /opt/venv/lib/python3*/site-packages/sympy/*/tests /opt/venv/lib/python3*/site-packages/sympy/*/*/tests \
    && python -c 'import torch; torch.version.cuda and print("\nThis torch brings CUDA along: gigabytes that nothing here uses.\nName an index of CPU wheels in PIP_EXTRA_INDEX_URL.\n")'


FROM packages AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ make \
    && { test -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" \
         || apt-get install -y --no-install-recommends python3-dev; } \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt
COPY requirements.txt requirements-checkpoint.txt ./
RUN pip install --no-cache-dir --progress-bar off -r requirements.txt \
    && pip install --no-cache-dir --progress-bar off --no-deps -r requirements-checkpoint.txt
COPY pyproject.toml README.md LICENSE ./
COPY backends backends
COPY build_scripts build_scripts
RUN mkdir server clients clients/chaos benchmarks \
    && pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY model_repository model_repository


FROM build AS models
# Both folders belong to the user, so that volumes made from them can be written to. What the recipes want for
# GPUs is built where this image is run on one.
RUN python -m build_scripts.build --without-gpu \
    && find model_repository -name __pycache__ -prune -exec rm -rf {} + \
    && chown -R 10001:10001 model_repository build
COPY deploy/builder/entrypoint.sh /opt/build.sh
USER 10001:10001
ENV HOME=/tmp
ENTRYPOINT ["sh", "/opt/build.sh"]


FROM packages AS cpu
LABEL org.opencontainers.image.title="triton-multi-device" \
      org.opencontainers.image.description="Triton with the backend python_mp, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN printf '/srv\n/srv/backends/python_mp\n' > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
COPY --from=models /srv/model_repository model_repository
COPY --from=build /srv/backends backends
COPY clients clients
COPY gateway gateway
COPY server server
RUN python -m compileall -q server clients gateway backends
USER 10001:10001
ENV HOST=0.0.0.0 HOME=/tmp
EXPOSE 8000 8001 8002 8003 8004
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=2s --timeout=2s --start-period=120s --retries=5 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8003, timeout=1); c.request('GET', '/ready'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "python", "-m", "server"]


# With Ray, for models of placement "ray".
FROM cpu AS ray
USER 0:0
COPY requirements-ray.txt ./
RUN pip install --no-cache-dir --progress-bar off -r requirements-ray.txt
USER 10001:10001
EXPOSE 8005


# TensorRT builds on the GPU that serves, so not here but when this image is run.
FROM ${TENSORRT_IMAGE} AS gpu-build
ENV PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1 HOME=/tmp
WORKDIR /srv
COPY requirements-tensorrt.txt ./
RUN pip install --no-cache-dir --progress-bar off -r requirements-tensorrt.txt
COPY pyproject.toml README.md LICENSE ./
COPY --from=build /srv/backends backends
COPY build_scripts build_scripts
RUN mkdir -p server clients/chaos benchmarks \
    && pip install --no-cache-dir --no-deps --no-build-isolation --editable .
COPY --from=models --chown=10001:10001 /srv/model_repository model_repository
COPY --from=models --chown=10001:10001 /srv/build build
COPY deploy/builder/entrypoint.sh /opt/build.sh
USER 10001:10001
ENTRYPOINT ["sh", "/opt/build.sh"]


FROM ${TRITON_IMAGE} AS gpu
LABEL org.opencontainers.image.title="triton-multi-device" \
      org.opencontainers.image.description="Triton with the backend python_mp, on GPUs" \
      org.opencontainers.image.licenses="Apache-2.0"
ENV PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
WORKDIR /srv
COPY requirements-serving.txt requirements-gateway.txt ./
RUN pip install --no-cache-dir --progress-bar off -r requirements-serving.txt -r requirements-gateway.txt \
    && printf '/srv\n/srv/backends/python_mp\n' > "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"
COPY --from=models /srv/model_repository model_repository
COPY --from=build /srv/backends backends
COPY clients clients
COPY gateway gateway
COPY server server
USER 10001:10001
ENV HOST=0.0.0.0 HOME=/tmp
EXPOSE 8000 8001 8002 8003 8004
HEALTHCHECK --interval=2s --timeout=2s --start-period=600s --retries=5 \
    CMD ["python3", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8003, timeout=1); c.request('GET', '/ready'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--", "python3", "-m", "server"]
