"The check for a GPU, rehearsed in small on a CPU from beginning to end; and what a bare machine is told first"
import importlib.util,json
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("gpu_check_script", ROOT/"tools/gpu_check.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.mark.timeout(900)
def test_rehearsal(tmp_path, capsys, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"): monkeypatch.setenv(name, "1")
    out = tmp_path/"check.jsonl"
    status = script.main(["--small", "--out", str(out), "--minutes", "60"])
    said = capsys.readouterr().out.splitlines()
    from ivgr.tools.gpu_check import PARTS
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert said[0].startswith("wheels beside torch and transformers: ") and said[1]=="missing: none"
    assert [row["part"] for row in rows]==[part.name for part in PARTS]
    wrong = {row["part"]: row["found"] for row in rows if not row["found"]["ok"]}
    assert not wrong and status==0
    assert all(row["small"] and row["found"]["device"]=="cpu" for row in rows)
    found = {row["part"]: row["found"] for row in rows}
    assert found["demos"]["finished"]==2 and found["demos"]["steps"]==[2, 2]
    assert found["trl"]["phases"].keys()>={"sampling", "reference", "update"}
    assert script.main(["--small", "--out", str(out)])==0                              # nothing is done twice
    assert len(out.read_text().splitlines())==len(rows)
    assert capsys.readouterr().out.count("is there")==len(rows)


def test_a_bare_machine_is_told_its_wheels_first(monkeypatch, capsys):
    bare = script.closure(script.GIVEN)
    real = metadata.version
    def here(name):
        if name.lower().replace("_", "-") not in bare: raise metadata.PackageNotFoundError(name)
        return real(name)
    monkeypatch.setattr(script.metadata, "version", here)
    script.say_wheels()
    first,second = capsys.readouterr().out.splitlines()
    missing = second.removeprefix("missing: ").split(", ")
    assert first.endswith(": none")
    assert {"trl", "bitsandbytes", "peft", "accelerate", "datasets", "fastcore", "matplotlib"}<=set(missing)
    assert not {"torch", "transformers", "numpy", "safetensors", "pyyaml", "filelock"} & set(missing)


def test_the_wheels_to_carry_are_pinned(capsys):
    assert script.main(["--wheels"])==0
    carried = dict(line.split("==") for line in capsys.readouterr().out.splitlines())
    pins = [Requirement(line) for line in (ROOT/"constraints.txt").read_text().splitlines() if line and line[0]!="#"]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    pinned = {pin.name.lower().replace("_", "-"): str(pin.specifier)[2:] for pin in here}
    assert {name: pinned.get(name) for name in carried}==carried


@pytest.mark.parametrize("words,problem", [
    (["--only", "cards"], "there is no part 'cards': choose of card, tree"),
    (["--minutes", "0"], "minutes=0.0: a time above 0"),
    ([], "there is no GPU here that PyTorch can use")])
def test_bad_input(words, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    from ivgr.tools import gpu_check
    if not words and gpu_check.torch.cuda.is_available(): pytest.skip("there is a GPU")
    worker = gpu_check.Worker
    monkeypatch.setattr(gpu_check, "Worker", lambda method: worker("fork"))  # no fresh Python, where there is no GPU to leave alone
    assert script.main([*words, "--out", str(tmp_path/"check.jsonl")])==1
    assert problem in capsys.readouterr().err
