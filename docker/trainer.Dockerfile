# Trainer and engine on NVIDIA GPUs: the torch plugin and verl in the image's own environment, vLLM in one of its own, since the two
# ask for different versions of transformers. The driver comes from the host (NVIDIA Container Toolkit).
#
#   docker build -f docker/trainer.Dockerfile -t agl-trainer .
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" agl-trainer doctor
#   docker run --rm --gpus all --ipc=host -v "$PWD:/work" agl-trainer train config.toml
#
# In config.toml: engine = { name = "vllm", python = "/opt/vllm/bin/python" }
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04
ARG EXTRAS=torch,verl,langchain,openai-agents,autogen
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 PATH=/opt/agl/bin:$PATH
RUN apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv python3-dev gcc g++ git \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/vllm && /opt/vllm/bin/pip install 'vllm>=0.32,<0.34'
COPY . /src
RUN python3 -m venv /opt/agl && /opt/agl/bin/pip install "/src[${EXTRAS}]" && rm -rf /src
WORKDIR /work
ENTRYPOINT ["agl"]
