"""The examples of the README compile, and import what they use of the library."""

import ast
import re
from pathlib import Path

import oncegate

README = Path(__file__).resolve().parents[2] / "README.md"


def not_imported(code: str) -> set[str]:
    """Names of the library that the code uses and does not import."""
    tree = compile(code, README.name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return (used & set(dir(oncegate))) - bound


def test_examples_import_what_they_use() -> None:
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        assert not_imported(example) == set(), example


def test_a_missing_import_is_found() -> None:
    assert not_imported("@gate.webhook(github.delivery)\nasync def hook(request): ...") == {"github"}
    assert not not_imported("from oncegate import slack\nawait gate.run(handler, slack.delivery(body))")
