"""TensorRT 11: from one rank's ONNX graph to its plan.

profiles     which shapes a plan is built for
precision    the graph in float16, bfloat16, int8 or fp8; TensorRT takes its types as they are
plan         graph and profiles -> plan, timing cache, inspector's report
builder      all plans of a model
tritonconfig config.pbtxt for Triton's own tensorrt backend

Everything imports without TensorRT and ModelOpt; what needs them says so when it is called.
"""
