"""An LLM agent's tool loop: the model asks for tools, the tools run in a sandbox, the answers go back to the model.

`ScriptedModel` stands in for a language model, so that this runs without an account. To use a real one, write a class
with the same `respond` around its client: the loop knows nothing else of it. Pass `trio` to run it on trio.
"""

import sys
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from cwsandbox import CWSandboxError, Sandbox


@dataclass
class ToolCall:
    name: str
    arguments: dict[str, Any]


@dataclass
class Turn:
    text: str
    calls: list[ToolCall] = field(default_factory=list)


class Model(Protocol):
    async def respond(self, messages: list[dict[str, str]]) -> Turn: ...


class ScriptedModel:
    """Writes a program, sees it fail, mends it, runs it again and reports what it printed."""

    async def respond(self, messages: list[dict[str, str]]) -> Turn:
        seen = [message["content"] for message in messages if message["role"] == "tool"]
        match len(seen):
            case 0:
                code = "import statistics\nprint(statistics.mean(values))\n"
                return Turn("I will write a program.", [ToolCall("write_file", {"path": "mean.py", "text": code})])
            case 1 | 3:
                return Turn("Let me run it.", [ToolCall("run", {"command": ["python", "mean.py"]})])
            case 2:
                code = "import statistics\nvalues = [1, 2, 6]\nprint(statistics.mean(values))\n"
                return Turn("The data is missing.", [ToolCall("write_file", {"path": "mean.py", "text": code})])
            case _:
                return Turn(f"The mean is {seen[-1].split()[-1]}.")


class Tools:
    """What the model may do, and where: one sandbox, nothing of this machine."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    async def write_file(self, path: str, text: str) -> str:
        await self._sandbox.write_file(f"/srv/{path}", text.encode())
        return f"wrote {path}"

    async def run(self, command: list[str]) -> str:
        result = await self._sandbox.exec(command, cwd="/srv", timeout_seconds=30)
        said = result.stdout if result.returncode == 0 else result.stderr.splitlines()[-1]
        return f"exit code {result.returncode}: {said.strip()}"

    async def call(self, call: ToolCall) -> str:
        """A tool that fails is an answer, too: the model may do better with it."""
        try:
            match call.name:
                case "write_file":
                    return await self.write_file(**call.arguments)
                case "run":
                    return await self.run(**call.arguments)
                case _:
                    return f"there is no tool {call.name!r}"
        except (CWSandboxError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"


async def solve(model: Model, task: str, max_turns: int = 10) -> str:
    messages = [{"role": "user", "content": task}]
    async with Sandbox() as sandbox:
        tools = Tools(sandbox)
        for _ in range(max_turns):
            turn = await model.respond(messages)
            messages.append({"role": "assistant", "content": turn.text})
            print("model:", turn.text)
            if not turn.calls:
                return turn.text
            for call in turn.calls:
                answer = await tools.call(call)
                messages.append({"role": "tool", "content": answer})
                print(f"{call.name}:", answer)
    raise RuntimeError(f"no answer after {max_turns} turns")


if __name__ == "__main__":
    anyio.run(solve, ScriptedModel(), "What is the mean of 1, 2 and 6?", backend=(sys.argv[1:] or ["asyncio"])[0])
