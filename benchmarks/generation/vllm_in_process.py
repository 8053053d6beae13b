"""vLLM on processors, in this process: run by the Python of a venv of its own, which has nothing
of this project. Each line is [prompts, max_tokens]; the answer is [tokens, seconds].

    python vllm_in_process.py CHECKPOINT
"""

import json
import os
import sys
import time

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # It logs there.

from vllm import LLM, SamplingParams  # type: ignore[import-not-found]  # noqa: E402

llm = LLM(sys.argv[1], dtype="float32", max_model_len=2048, enable_prefix_caching=False)
for line in sys.stdin:
    prompts, most = json.loads(line)
    settings = SamplingParams(temperature=0, max_tokens=most, ignore_eos=True, detokenize=False)
    given = [{"prompt_token_ids": each} for each in prompts]
    began = time.perf_counter()
    found = llm.generate(given, settings, use_tqdm=False)
    seconds = time.perf_counter() - began
    print(json.dumps([sum(len(e.outputs[0].token_ids) for e in found), seconds]), file=answers)
    answers.flush()
