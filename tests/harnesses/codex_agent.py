"""Runs the coding agent Codex on one task and prints the reward: 1 if its last message has the answer, else 0."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

task = json.load(sys.stdin)
with tempfile.TemporaryDirectory(dir=os.environ.get("CODEX_FOLDER")) as home:
    provider = {"name": "rollout", "base_url": os.environ["OPENAI_BASE_URL"], "env_key": "OPENAI_API_KEY", "wire_api": "responses"}
    settings = {"model_provider": "rollout", "web_search": "disabled", "model_context_window": 32000, **task.get("codex", {})}
    settings |= {f"model_providers.rollout.{name}": value for name, value in provider.items()}
    command = ["codex", "exec", "--skip-git-repo-check", "--sandbox", "workspace-write", "--model", os.environ["AGL_MODEL"]]
    for name, value in settings.items():
        command += ["--config", f"{name}={json.dumps(value)}"]
    command += ["--output-last-message", f"{home}/answer", task["question"]]
    subprocess.run(command, env={**os.environ, "CODEX_HOME": home}, stdin=subprocess.DEVNULL, check=True)
    answer = Path(home, "answer").read_text()
print(float(task["answer"] in answer))
