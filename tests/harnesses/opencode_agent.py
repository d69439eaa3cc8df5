"""Runs the coding agent OpenCode over Anthropic's Messages and prints the reward: 1 if its output has the answer, else 0."""

import json
import os
import subprocess
import sys
import tempfile

task = json.load(sys.stdin)
model = {"id": os.environ["AGL_MODEL"], "limit": {"context": task.get("context", 32000), "output": 2000}}
options = {"baseURL": os.environ["ANTHROPIC_BASE_URL"] + "/v1", "apiKey": os.environ["ANTHROPIC_API_KEY"]}
config = {
    "model": "rollout/policy",
    "small_model": "rollout/policy",
    "autoupdate": False,
    "share": "disabled",
    "permission": {"*": "allow"},
    "provider": {"rollout": {"npm": "@ai-sdk/anthropic", "options": options, "models": {"policy": model}}},
}
with tempfile.TemporaryDirectory() as home:
    folders = dict.fromkeys(("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"), home)
    settings = {"OPENCODE_CONFIG_CONTENT": json.dumps(config), "OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}
    command = ["opencode", "run", task["question"]]
    environment = {**os.environ, **folders, **settings}
    output = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True).stdout
print(output)
print(float(task["answer"] in output))
