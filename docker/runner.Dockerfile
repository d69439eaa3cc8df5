# Agent runners: CPU only, no torch. They run agents, and reach model and store over HTTP.
#
#   docker build -f docker/runner.Dockerfile -t agl-runner .
#   docker run --rm -v "$PWD:/work" agl-runner show agl.db
#
# EXTRAS are the frameworks of your agents: langchain, openai-agents, autogen.
FROM python:3.12-slim
ARG EXTRAS=langchain
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
COPY . /src
RUN pip install "/src[${EXTRAS}]" && rm -rf /src && useradd --create-home agent
USER agent
WORKDIR /work
ENTRYPOINT ["agl"]
