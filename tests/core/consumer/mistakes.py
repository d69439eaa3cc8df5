"""Mistakes in the use of the public API: a type checker reports each line that ends with `wrong`, and no other."""

from __future__ import annotations

import agentlightning as agl
from agentlightning.contracts.engine import Engine
from agentlightning.contracts.model import ModelFiles
from agentlightning_langchain import install


class Half(Engine):
    async def pause(self) -> None:
        return None


agl.Sampling(temperature="hot")  # wrong
agl.reward("much")  # wrong
print(agl.trian)  # wrong
install(models=3)  # wrong
Half()  # wrong
ModelFiles(name="tiny")  # wrong
