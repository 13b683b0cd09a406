"""The floors of the house: what may import what.

The book (`nbs/00` to `nbs/20`, modules of `ivgr` itself) stands on its own; rooms (sub-packages) use it, never the other way
round, but for `data`. Imports are read from the source, those inside functions too. Cells that are not exported may import
anything."""
import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted(p for p in (ROOT/"ivgr").rglob("*.py") if p.name not in ("_modidx.py", "__init__.py", "__main__.py"))
NOTEBOOKS = sorted((ROOT/"nbs").rglob("[!_.]*.ipynb"))
by_module = pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT/"ivgr").with_suffix("").as_posix())
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.relative_to(ROOT/"nbs").with_suffix("").as_posix())

IN_TRAIN = {"qlora"}                                         # stays `ivgr.qlora`, but belongs to the room train
MAY_USE = {"trainer": {"data", "train"}, "demo": {"data", "train", "evaluate"}}
FOR_ALL = {"data"}                                           # the one room that every module of the book may use
CLOSED = {"tools", "studies"}                                # rooms that no other room uses

def module_name(path):
    "As in `import`: `ivgr.data.samples`"
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)

NAMES = {module_name(p) for p in MODULES}

def imported(path):
    "Modules of ours that a module imports, each with the names it takes"
    package = module_name(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names if alias.name.split(".")[0]=="ivgr")
        if isinstance(node, ast.ImportFrom):
            base = package[:len(package)-node.level+1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name.split(".")[0]!="ivgr": continue
            names = [alias.name for alias in node.names]
            inner = [n for n in names if f"{name}.{n}" in NAMES]  # `from ivgr.data import samples`
            yield from ((f"{name}.{n}", ()) for n in inner)
            yield name, tuple(n for n in names if n not in inner)

def room(name):
    "The room that a module belongs to; None: the book"
    parts = name.split(".")
    if parts[-1] in IN_TRAIN: return "train"
    return parts[1] if len(parts)>2 or name=="ivgr.data" else None

@by_module
def test_floors(path):
    name = module_name(path)
    own = room(name)
    for other in {n for n,_ in imported(path)}:
        there = room(other)
        if there in (None, own): continue
        if own is None: assert there in MAY_USE.get(name.split(".")[1], FOR_ALL), f"a module of the book imports {other}"
        else: assert there not in CLOSED or own in CLOSED, f"{other} is for no other room"

def numbers():
    "Module of the book to the number of its notebook"
    found = {}
    for path in (ROOT/"nbs").glob("[0-9]*.ipynb"):
        exports = re.search(r"#\| ?default_exp ([\w.]+)", path.read_text())
        if exports: found[f"ivgr.{exports[1]}"] = int(path.name.split("_")[0])
    return found

NUMBERS = numbers()

@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_numbers_point_down(name):
    for other,_ in imported(ROOT/f"{name.replace('.', '/')}.py"):
        assert NUMBERS.get(other, -1)<NUMBERS[name], f"{name} imports {other}, which comes later"

@by_module
def test_private_names_stay_private(path):
    for other,names in imported(path): assert not [n for n in names if n[0]=="_" and n[:2]!="__"], other

@by_module
def test_lines_are_short(path):
    "At most 110 columns; the list of exported names is written by nbdev, which breaks it at 120"
    source = path.read_text()
    exported = {k for node in ast.parse(source).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0])=="__all__"
                for k in range(node.lineno, node.end_lineno+1)}
    long = [f"line {k}: {len(line)}" for k,line in enumerate(source.splitlines(), 1) if len(line)>110 and k not in exported]
    assert not long

@by_notebook
def test_the_first_cell_holds_title_and_sentence(path):
    "nbdev drops everything else of it from the website"
    first = "".join(json.loads(path.read_text())["cells"][0]["source"])
    if path.name=="index.ipynb": return  # the start page opens with a badge and its pitch
    assert re.fullmatch(r"# [^\n]+\n\n> [^\n]+\n?", first), first

def test_the_book_is_short():
    book = list((ROOT/"nbs").glob("[0-9]*.ipynb"))
    assert len(book)<=15, sorted(p.name for p in book)

def test_a_wrong_import_is_seen(tmp_path, monkeypatch):
    (tmp_path/"ivgr").mkdir()
    bad = tmp_path/"ivgr/boxes.py"
    bad.write_text("def f():\n    from .serve.endpoint import _post, EndpointJudge\n    from ivgr.tools import plan\nimport ivgr.demo\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert set(imported(bad))=={("ivgr.serve.endpoint", ("_post", "EndpointJudge")), ("ivgr.tools.plan", ()), ("ivgr.tools", ()), ("ivgr.demo", ())}
    for test in (test_floors, test_private_names_stay_private):
        with pytest.raises(AssertionError): test(bad)
