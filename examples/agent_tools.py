"""Two tools for an agent, as an MCP server that talks over its standard input and output.

    python examples/agent_tools.py [FILE]

With FILE each call adds a line of JSON to it. docs/agents.md uses this.
"""

import json
import sys

from mcp.server.fastmcp import FastMCP

server = FastMCP("calculator", log_level="WARNING")


@server.tool()
def add(a: int, b: int) -> int:
    """Add two numbers."""
    _note("add", a, b)
    return a + b


@server.tool()
def multiply(a: int, b: int) -> int:
    """Multiply two numbers."""
    _note("multiply", a, b)
    return a * b


def _note(tool: str, *arguments: int) -> None:
    if len(sys.argv) > 1:
        with open(sys.argv[1], "a", encoding="utf-8") as file:
            file.write(json.dumps([tool, *arguments]) + "\n")


if __name__ == "__main__":
    server.run()
