"""The page of `ivgr replies --page`, in a real browser."""
import json

import pytest
from test_app import BROWSER,chromium

from ivgr.core import Frame,Group,Reward,Rollout,Stream,read_jsonl
from ivgr.data.samples import Samples
from ivgr.needle import write_needle
from ivgr.prompts import parse
from ivgr.tools.cli import main
from ivgr.train.runs import write_completions

@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A run as `ivgr train` leaves it: two replies to each of four questions in two steps"
    folder = tmp_path_factory.mktemp("page")
    write_needle(folder/"needle", "train", 8, progress=False)
    groups = []
    for sample in list(Samples(folder/"needle"))[:4]:
        x1,y1,x2,y2 = (round(v/96*1000) for v in sample.boxes[0])
        texts = {Stream.GROUNDED: f"<think>The tile <box>[{x1},{y1},{x2},{y2}]</box> is there.</think><answer>red</answer>", Stream.TEXTUAL: "<think>Hm.</think>"}
        rollouts = [Rollout(stream, [1], [0.], text, parsed=parse(text, stream, Frame.unit1000()), reward=Reward(dict(accuracy=1., consistency=None), 1., "text"),
                            advantage=.7) for stream,text in texts.items()]
        groups.append(Group(sample, rollouts, Frame.unit1000(), (96, 96)))
    (folder/"run").mkdir()
    for batch in (0, 1): write_completions(folder/"run", groups, batch, 8, 0)
    (folder/"run"/"run.json").write_text(json.dumps(dict(data=str(folder/"needle"), updates_per_rollout=1)))
    return folder/"run"

EVIL = "</pre><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

@pytest.fixture(scope="module")
def page(run):
    "With one reply that is a program"
    rows = read_jsonl(run/"completions.jsonl")
    rows[0] |= dict(text=EVIL, question=EVIL)
    (run/"completions.jsonl").write_text("".join(json.dumps(row)+"\n" for row in rows))
    assert main(["replies", str(run), "--page"])==0
    return run/"replies.html"

@pytest.fixture(scope="module")
def tab(page, tmp_path_factory):
    if BROWSER is None: pytest.skip("no Chromium is installed")
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        tab.call("Page.navigate", url=page.as_uri())
        tab.until("document.readyState=='complete' && document.title.startsWith('Replies of')")
        yield tab

def complaints(tab):
    return [e for e in tab.events if e.get("method")=="Runtime.exceptionThrown" or e.get("params", {}).get("entry", {}).get("source")=="security"]

def test_replies_pictures_and_boxes_are_there(tab, run):
    rows = read_jsonl(run/"completions.jsonl")
    assert tab.texts("h2")==["Step 2", "Step 1"]
    assert sorted(tab.texts("section pre"))==sorted(row["text"] for row in rows)
    samples = {sample.id: sample for sample in Samples(run.parent/"needle")}
    drawn = {(row["batch"], row["id"]) for row in rows}
    assert tab.count("section svg")==len(drawn)
    assert tab.count("section svg .true")==sum(len(samples[name].boxes) for _,name in drawn)
    assert tab.count("section svg .written")==sum(len(row["boxes"]) for row in rows)==8
    assert tab.count("image")==len({row["id"] for row in rows})

def test_a_box_lies_on_the_screen_where_it_does_in_the_picture(tab, run):
    place = """(s => (({left, top, width, height}) => [left, top, width, height])(document.querySelector(s).getBoundingClientRect()))"""
    frame,box = (tab.js(f"{place}({s!r})") for s in ("section svg", "section svg .true"))
    view = tab.js("document.querySelector('section svg').getAttribute('viewBox')")
    x,y,w,h = (float(tab.js(f"document.querySelector('section svg .true').getAttribute({n!r})")) for n in ("x", "y", "width", "height"))
    side = float(view.split()[2])
    assert frame[2]>100 and box[2]==pytest.approx(w/side*frame[2], abs=5) and box[0]-frame[0]==pytest.approx(x/side*frame[2], abs=5)
    assert box[1]-frame[1]==pytest.approx(y/side*frame[3], abs=5)

def test_a_reply_that_is_a_program_is_text(tab):
    assert EVIL in tab.texts("section pre") and tab.js("document.title").startswith("Replies of")
    assert tab.count("script, img")==0 and not complaints(tab)

def test_what_would_slip_in_is_forbidden_too(tab):
    "The page's own policy holds even where escaping should fail"
    tab.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title=1\">'); 1")
    tab.until("1")
    assert tab.js("document.title").startswith("Replies of")
    tab.js("document.body.lastElementChild.remove()")
    tab.events.clear()

@pytest.mark.parametrize("width", (360, 1200))
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_it_fits_a_phone_and_the_dark(tab, width, scheme):
    tab.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width<500)
    tab.call("Emulation.setEmulatedMedia", features=[dict(name="prefers-color-scheme", value=scheme)])
    assert tab.js("document.documentElement.scrollWidth")<=width
    columns = tab.js("getComputedStyle(document.querySelector('section')).gridTemplateColumns").split()
    assert len(columns)==(1 if width<500 else 2)
    def light(what): return sum(map(int, tab.js(f"getComputedStyle(document.body).{what}").strip("rgb()").split(",")))>380
    assert light("backgroundColor")==(scheme=="light") and light("color")==(scheme=="dark")
