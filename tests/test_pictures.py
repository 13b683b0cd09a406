"""Pictures in trackers, the real ones, offline: what a run has sent is read back from what they wrote. Each is skipped where it is not
installed. What we send is tested in nbs/train/pictures.ipynb without them, and here for wandb and trackio with stand-ins of their names."""
import io,json,sys
from types import ModuleType

import pytest,torch
from PIL import Image
from transformers.integrations import INTEGRATION_TO_CALLBACK

from ivgr.needle import write_needle
from ivgr.train.pictures import Completion,Report,send
from ivgr.train.rl import train
from ivgr.trainer import DualStreamConfig

EVIL = "<script>document.title='owned'</script>"

def completion(text, **more):
    row = dict(batch=0, id="needle-1", stream="textual", question="Which?", truth="red", text=text, parts=dict(format=1., consistency=None), total=1.,
               advantage=-.7)
    return Completion(row|more, [Image.new("RGB", (28, 28), "red")])

REPORT = Report(25, {"needle-1": Image.new("RGB", (90, 39), "white")}, [completion(EVIL), completion("fine", parts=dict(box=.5))])

def stand_in(name, monkeypatch):
    "A library with the names that we use, and the callback that transformers would have made"
    sent = []
    library = ModuleType(name)
    library.Image = lambda value, caption=None: ("image", value.size, caption)
    library.Table = lambda dataframe: ("table", dataframe.to_dict("records"))
    library.log = sent.append
    monkeypatch.setitem(sys.modules, name, library)
    callback = INTEGRATION_TO_CALLBACK[name]
    return callback.__new__(callback),sent

@pytest.mark.parametrize("name", ("wandb", "trackio"))
def test_what_a_dashboard_is_sent(name, monkeypatch):
    callback,sent = stand_in(name, monkeypatch)
    assert send([callback], REPORT)==[name]
    assert sent[0]["train/global_step"]==25 and sent[0]["scenes/needle-1"]==("image", (90, 39), "step 25")
    kind,rows = sent[0]["completions"]
    assert kind=="table" and [row["picture"] for row in rows]==[[("image", (28, 28), None)]]*2 and rows[1]["reply"]=="fine" and rows[1]["box"]==.5
    assert (EVIL in rows[0]["reply"])==(name=="wandb")   # trackio reads a cell as Markdown, wandb as it is

def test_without_completions_there_is_no_table(monkeypatch):
    callback,sent = stand_in("wandb", monkeypatch)
    send([callback], REPORT._replace(completions=[]))
    assert set(sent[0])=={"train/global_step", "scenes/needle-1"}

def test_a_tracker_that_fails_is_a_warning(monkeypatch):
    callback,_ = stand_in("wandb", monkeypatch)
    sys.modules["wandb"].log = lambda values: 1/0
    with pytest.warns(UserWarning, match="wandb did not take the pictures of step 25"): assert send([callback], REPORT)==[]

def trained(folder, tracker):
    "A run of two steps with pictures after each, resumed for a third"
    torch.set_num_threads(1)
    write_needle(folder/"needle", "train", 8, progress=False)
    for steps in (2, 3):
        args = DualStreamConfig(data=str(folder/"needle"), output_dir=str(folder/"run"), max_steps=steps, per_device_train_batch_size=2, n_rollouts=2,
                                save_steps=1, use_cpu=True, max_new_tokens=40, picture_steps=1, picture_n=2, report_to=[tracker], run_name="pictured")
        train(args, resume=steps==3, progress=False)

def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    trained(tmp_path, "tensorboard")
    pictures,texts = {},{}
    for file in sorted((tmp_path/"run").rglob("events.out.tfevents*")):
        events = accumulator.EventAccumulator(str(file), size_guidance=dict(images=0, tensors=0))
        events.Reload()
        for tag in events.Tags()["images"]: pictures.setdefault(tag, []).extend(events.Images(tag))
        for tag in events.Tags()["tensors"]: texts.setdefault(tag, []).extend(events.Tensors(tag))
    scenes = {tag: found for tag,found in pictures.items() if tag.startswith("scenes/")}
    assert len(scenes)==2 and all([event.step for event in found]==[1, 2, 3] for found in scenes.values())
    assert any(tag.startswith("inputs/") for tag in pictures)
    for found in scenes.values(): assert Image.open(io.BytesIO(found[0].encoded_image_string)).size==(900, 390)
    table, = (found for tag,found in texts.items() if tag.startswith("completions"))
    assert [event.step for event in table]==[1, 2, 3] and b"| textual |" in table[0].tensor_proto.string_val[0]

def test_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name,value in dict(WANDB_MODE="offline", WANDB_DIR=str(tmp_path), WANDB_SILENT="true").items(): monkeypatch.setenv(name, value)
    trained(tmp_path, "wandb")
    files = [p for p in (tmp_path/"wandb").rglob("*") if p.is_file()]
    assert len([p for p in files if "scenes" in p.as_posix() and p.suffix==".png"])==2*3
    tables = [json.loads(p.read_text()) for p in files if p.name.startswith("completions") and p.name.endswith(".table.json")]
    assert len(tables)==3 and all({"step", "stream", "reply", "advantage", "picture"}<=set(table["columns"]) and len(table["data"])==4 for table in tables)

def test_trackio(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path/"trackio"))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is not installed")
    trained(tmp_path, "trackio")
    files = [p for p in (tmp_path/"trackio").rglob("*") if p.is_file()]
    assert len([p for p in files if p.suffix==".png"])>=2*3
    kept = b"".join(p.read_bytes() for p in files if p.suffix in (".db", ".db-wal"))
    assert b"scenes/needle" in kept and b"trackio.table" in kept
