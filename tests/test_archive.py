"The archive: what it keeps, what survives a crash, and what a step's scoring does"
import json,os,random,signal
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given,strategies as st

from ivgr.archive import Archive, Reference, judge_answers, judge_reasonings, score_groups
from ivgr.core import Frame, Group, InputError, Parsed, Reward, Rollout, Sample, Stream
from ivgr.data.answers import answer_accuracy
from ivgr.judge import RubricJudge

from forked import Forked

ROOT = Path(__file__).resolve().parent.parent
anything = st.text(st.characters(exclude_categories=()))  # lone surrogates as well
finite = st.floats(allow_nan=False, allow_infinity=False)

def grounded(box, format=1., accuracy=1., think="I look.", boxes=()):
    return Rollout(Stream.GROUNDED, [], [], "", parsed=Parsed(think, "blue", tuple(boxes), well_formed=format==1),
                   reward=Reward(dict(format=format, accuracy=accuracy, box=box)))

def group(id, *rollouts): return Group(Sample(id, (), "Which?", "blue"), list(rollouts))

BOXES,RIGHT = [0., .1, .3, .30001, .5, .7, 1.],[(1., 1.), (1., 1.), (0., 1.), (1., 0.)]
rollout = st.sampled_from([(box, *right) for box in BOXES for right in RIGHT])
offers = st.lists(st.tuples(st.sampled_from("abc"), st.lists(rollout, min_size=1, max_size=3)), max_size=6)

@given(offers, st.sampled_from([0., .3, .5]), st.integers(0, 99))
def test_the_best_is_kept_whatever_the_order(offers, tau, seed):
    def run(offers):
        archive = Archive(tau)
        for step,(id,rs) in enumerate(offers):
            before = archive.get(id)
            new = archive.update(group(id, *[grounded(*r) for r in rs]), step)
            after = archive.get(id)
            assert new == (after!=before)
            if new: assert after.batch==step and (before is None or after.box_reward>before.box_reward)
        return {i: archive.get(i).box_reward for i in "abc" if archive.get(i)}, archive
    best = {}
    for id,rs in offers:
        for box,format,accuracy in rs:
            if format==accuracy==1 and box>tau: best[id] = max(box, best.get(id, 0))
    kept,archive = run(offers)
    assert kept == best
    assert archive.coverage("abc") == len(best)/3 and set(archive.ages(99)) == set(best)
    random.Random(seed).shuffle(offers)
    assert run(offers)[0] == best

@given(offers, offers)
def test_merging_processes_is_like_one_process(left, right):
    def run(offers):
        archive = Archive()
        for step,(id,rs) in enumerate(offers): archive.update(group(id, *[grounded(*r) for r in rs]), step)
        return archive
    a,b,both = run(left),run(right),run(left+right)
    best = lambda archive: {i: archive.get(i).box_reward for i in "abc" if archive.get(i)}
    ab,ba = Archive(),Archive()
    for x in (a, b): ab.merge(x.state_dict())
    for x in (b, a): ba.merge(x.state_dict())
    assert best(ab) == best(ba) == best(both)
    assert ab.merge(both.state_dict()) == 0

references = st.builds(Reference, sample_id=anything.filter(bool), text=anything, batch=st.integers(),
                       boxes=st.lists(st.tuples(*[finite]*4), max_size=3), box_reward=st.floats(.31, 1))

def archive_of(references, tau=.3):
    archive = Archive(tau)
    for ref in references: archive.offer(ref)
    return archive

@given(st.lists(references, max_size=4))
def test_saving_loses_nothing(tmp_path_factory, refs):
    archive,path = archive_of(refs),tmp_path_factory.getbasetemp()/"archive.jsonl"
    again = Archive.load(archive.save(path))
    assert again.tau==archive.tau and len(again)==len(archive)
    for ref in refs: assert again.get(ref.sample_id) == archive.get(ref.sample_id)
    assert again.state_dict() == archive.state_dict()
    assert again.save(path.with_name("again.json")).read_bytes() == path.read_bytes()

@given(st.lists(st.lists(references, max_size=3), max_size=5), st.sampled_from(["kept", "gone", "cut", "read again"]))
def test_every_save_is_whole_whatever_became_of_the_last(tmp_path_factory, batches, fate):
    archive,folder = Archive(),tmp_path_factory.mktemp("saves")
    for step,refs in enumerate(batches):
        for ref in refs: archive.offer(ref)
        path = archive.save(folder/str(step)/"archive.jsonl")
        again = Archive.load(path)
        assert again.state_dict() == archive.state_dict()
        assert path.read_bytes().count(b"\n")-1 <= 2*len(archive)
        if fate=="gone": path.unlink()
        elif fate=="cut": path.write_bytes(path.read_bytes()[:-2])
        elif fate=="read again": archive = again

@given(st.lists(references, min_size=1, max_size=3), st.data())
def test_a_damaged_file_is_said_to_be_one(tmp_path_factory, refs, data):
    path = archive_of(refs).save(tmp_path_factory.getbasetemp()/"archive.jsonl")
    whole = path.read_bytes()
    path.write_bytes(whole[:data.draw(st.integers(0, len(whole)-1))])
    with pytest.raises(InputError, match="archive.jsonl"): Archive.load(path)
    at = data.draw(st.integers(0, len(whole)-1))
    path.write_bytes(whole[:at]+data.draw(st.binary(min_size=1, max_size=4))+whole[at+1:])
    try: Archive.load(path)  # a changed letter inside a text can't be noticed
    except InputError as e: assert "archive.jsonl" in str(e)

json_values = st.recursive(st.none()|st.booleans()|finite|st.integers()|st.text(),
                           lambda v: st.lists(v)|st.dictionaries(st.text(), v), max_leaves=6)
KEYS = ["", "kind", "version", "tau", "references", "sample_id", "text", "boxes", "box_reward", "batch"]

def is_good(key, value):
    "Would a state with this entry be a good one all the same?"
    number = type(value) in (int, float)
    return {"sample_id": isinstance(value, str) and value!="", "text": isinstance(value, str), "tau": number,
            "box_reward": number and 0<=value<=1, "batch": type(value) is int, "boxes": value==[],
            "references": value==[], "version": value==2}.get(key, False)

@given(json_values, st.sampled_from(KEYS))
def test_a_foreign_state_is_refused_and_changes_nothing(value, key):
    ref = Reference("a", "I look.", ((1., 2., 3., 4.),), .5, 1)
    archive = archive_of([ref])
    state = json.loads(json.dumps(archive.state_dict()))
    if not key: state = value
    elif key in state: state[key] = value
    else: state["references"][0][key] = value
    before = archive.state_dict()
    if is_good(key, value): return
    with pytest.raises(InputError): archive.load_state_dict(state)
    with pytest.raises(InputError): archive.merge(state)
    assert archive.state_dict() == before

@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"null", b"[]", b"{}", b'"ivgr archive"', b"["*100000, b"NaN",
                                     b'{"kind": "ivgr archive", "version": 2, "tau": NaN, "rows": 0}\n',
                                     b'{"kind": "ivgr archive", "version": 2, "tau": 7, "rows": 0}\n'])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path/"archive.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match="archive.jsonl"): Archive.load(path)

def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="no archive at .*none.json"): Archive.load(tmp_path/"none.json")
    with pytest.raises(InputError, match=str(tmp_path)): Archive.load(tmp_path)

def test_another_tau_is_reported(tmp_path):
    refs = [Reference(i, "I look.", (), b, 1) for i,b in (("a", .4), ("b", .6), ("c", .8))]
    path = archive_of(refs).save(tmp_path/"archive.jsonl")
    with pytest.warns(UserWarning, match="tau=0.3, this archive has tau=0.5: 1 of 3"):
        strict = Archive.load(path, tau=.5)
    assert strict.tau==.5 and strict.coverage("abc")==2/3
    with pytest.warns(UserWarning, match="tau=0.1: 0 of 3"): assert len(Archive.load(path, tau=.1))==3
    with pytest.raises(InputError, match="tau=2"): Archive.load(path, tau=2)

def test_outdated_rows_are_not_counted(tmp_path):
    archive = archive_of([Reference("a", "I look.", (), .4, 1), Reference("b", "I look.", (), .4, 1)])
    archive.save(tmp_path/"1.jsonl")
    archive.offer(Reference("a", "I look again.", (), .6, 2))
    with pytest.warns(UserWarning, match="tau=0.5: 1 of 2"): assert len(Archive.load(archive.save(tmp_path/"2.jsonl"), tau=.5))==1

def test_the_same_tau_is_silent(tmp_path, recwarn):
    path = archive_of([Reference("a", "I look.", (), .4, 1)]).save(tmp_path/"archive.jsonl")
    assert len(Archive.load(path))==len(Archive.load(path, tau=.3))==1 and not recwarn.list

def die_while_saving(path, moment):
    archive = Archive()
    for i in range(1000): archive.offer(Reference(str(i), "the new one", (), .5, 2))
    setattr(os, moment, lambda *args: os.kill(os.getpid(), signal.SIGKILL))
    archive.save(path)

@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_killed_in_the_middle_of_saving(tmp_path, moment):
    old = archive_of([Reference("a", "the old one", (), .5, 1)])
    path = old.save(tmp_path/"archive.jsonl")
    status,text = Forked(tmp_path/"said", die_while_saving, str(path), moment).end()
    assert status==-signal.SIGKILL, text
    assert Archive.load(path).state_dict() == old.state_dict()

@pytest.mark.parametrize("change", [
    dict(sample_id=7), dict(sample_id=""), dict(text=None), dict(box_reward=-.1), dict(box_reward=2),
    dict(box_reward="1"), dict(box_reward=float("nan")), dict(box_reward=10**400), dict(batch=1.), dict(batch=True),
    dict(boxes=3), dict(boxes={}), dict(boxes=((1,),)),
    dict(boxes=((1, 2, 3, float("nan")),)), dict(boxes=(("1", 2, 3, 4),)), dict(boxes=["1234"])])
def test_bad_references_are_named(change):
    with pytest.raises(InputError, match=next(iter(change))):
        Reference(**dict(sample_id="a", text="I look.", boxes=(), box_reward=.5, batch=1)|change)

# --- scoring a step ------------------------------------------------------------------------------------------------

SAYS = ["The red tile is in the upper left. Its top is blue.", "The red tile is in the upper left.", "Its top is cyan.",
        "There is a green tile.", "", None]
TARGET = (10., 10., 30., 30.)
sampled_grounded = st.tuples(st.floats(10.5, 30), st.sampled_from(["blue", "cyan"]), st.booleans())
ANSWERS = ["blue", "cyan", None]
sampled_textual = st.tuples(st.sampled_from(SAYS), st.sampled_from(ANSWERS), st.booleans(), st.booleans())

def groups_of(batch):
    "Groups from (id, grounded, textual) draws"
    out = []
    for id,gs,ts in batch:
        read = [(Stream.GROUNDED, Parsed(SAYS[0], answer, ((10., 10., x2, 30.),), well_formed=ok, wrote_boxes=True))
                for x2,answer,ok in gs]
        read += [(Stream.TEXTUAL, Parsed(think, answer, well_formed=ok, wrote_boxes=boxes))
                 for think,answer,ok,boxes in ts]
        rollouts = [Rollout(stream, [], [], "", parsed=p) for stream,p in read]
        sample = Sample(id, (), "What colour is the top of the red tile?", "blue", (TARGET,))
        out.append(Group(sample, rollouts, Frame.original(60, 60), (60, 60)))
    return out

query = st.tuples(st.sampled_from("abc"), st.lists(sampled_grounded, max_size=3), st.lists(sampled_textual, max_size=4))
batches = st.lists(query, max_size=3, unique_by=lambda b: b[0])

@given(st.lists(batches, max_size=3), st.lists(st.booleans(), min_size=50, max_size=50))
def test_scoring_follows_the_rules(steps, failures):
    archive,best,calls = Archive(),{},[]
    def judge(pairs):
        calls.append(len(pairs))
        return [None if fails else s for s,fails in zip(RubricJudge()(pairs), failures)]
    for step,batch in enumerate(steps):
        groups = groups_of(batch)
        calls.clear()
        stats = score_groups(groups, archive, judge, step)
        assert len(calls)<=1 and sum(calls)==stats["judge/pairs"]
        for id,gs,_ in batch:  # the archive is up to date before the textual rollouts are scored
            for x2,answer,ok in gs:
                iou = (x2-10)/20
                if ok and answer=="blue" and iou>.3: best[id] = max(iou, best.get(id, 0))
        assert {i: archive.get(i).box_reward for i in "abc" if archive.get(i)} == pytest.approx(best)
        n = 0
        for g in groups:
            for r in g.of(Stream.TEXTUAL):
                c = r.reward.parts["consistency"]
                if g.sample.id not in best: assert c is None
                elif not r.parsed.think: assert c==0.
                else:
                    want = {SAYS[0]: 1., SAYS[1]: .7, SAYS[2]: 0., SAYS[3]: .3}[r.parsed.think]
                    assert c == (None if failures[n] else want)
                    n += 1
            for stream in (Stream.GROUNDED, Stream.TEXTUAL):
                rs = g.of(stream)
                for r in rs:
                    third = "box" if stream==Stream.GROUNDED else "consistency"
                    have = [q.reward.parts[third] for q in rs if q.reward.parts[third] is not None]
                    value = r.reward.parts[third]
                    if value is None: value = sum(have)/len(have) if have else 0.
                    total = r.reward.parts["format"]+r.reward.parts["accuracy"]+value
                    assert abs(r.reward.total-total)<1e-5
        assert stats["judge/missing"] == sum(failures[:n])
        assert all(isinstance(v, (int, float)) and v==v for v in stats.values())

def test_skipping_the_reasoning_earns_nothing():
    good = (SAYS[0], "blue", True, False)
    mute = [(None, "blue", False, False), ("  ", "blue", True, False)]
    g, = groups_of([("a", [(30., "blue", True)], [good, good, *mute])])
    score_groups([g], Archive(), RubricJudge(), 0)
    assert [r.reward.total for r in g.of(Stream.TEXTUAL)] == [3., 3., 1., 2.]

def test_a_consistency_weight_of_zero_is_no_consistency():
    g, = groups_of([("a", [(30., "blue", True)], [(SAYS[0], "blue", True, False), (SAYS[2], "blue", True, False)])])
    weights = dict(format=1., accuracy=1., box=1., consistency=0.)
    score_groups([g], Archive(), RubricJudge(), 0, weights)
    assert [r.reward.total for r in g.of(Stream.TEXTUAL)] == [2., 2.]

def test_numbers_are_kept_per_stream():
    g, = groups_of([("a", [(30., "blue", True), (12., "blue", True)], [(SAYS[1], "blue", True, True)])])
    stats = score_groups([g], Archive(), RubricJudge(), 0)
    assert stats["grounded/reward"]==pytest.approx(2.55) and stats["grounded/iou"]==pytest.approx(.55)
    assert stats["textual/reward"]==pytest.approx(1.7)
    assert stats["textual/format"]==0. and stats["textual/wrote_boxes"]==1.
    assert stats["textual/consistency_share/0.7"]==1. and stats["textual/consistency_share_right/0.7"]==1.
    assert stats["archive/coverage"]==1. and stats["archive/age"]==0. and stats["archive/updates"]==1

def test_a_grounded_group_without_a_frame_is_named():
    g, = groups_of([("a", [(30., "blue", True)], [])])
    g.frame = None
    with pytest.raises(InputError, match="'a'.*frame=None"): score_groups([g], Archive(), RubricJudge(), 0)

def test_a_judge_is_told_the_query():
    "The policy is asked `problem`, with its options; a judge gets `query`, for both of its uses"
    sample = Sample("a", (), "Which?\n(A) blue\n(B) red", "blue", boxes=((1, 1, 5, 5),), query="Which?")
    replies = [Rollout(Stream.TEXTUAL, [], [], "", parsed=Parsed("I think.", "azure", well_formed=True),
                       reward=Reward(dict(format=1., accuracy=None), rule="judge")) for _ in range(2)]
    archive = Archive()
    archive.offer(Reference("a", "I saw it.", batch=0, boxes=[(1, 1, 5, 5)], box_reward=.9))
    pairs = []
    def judge(asked):
        pairs.extend(asked)
        return [1.]*len(asked)
    group = Group(sample, replies)
    judge_answers([group], judge)
    judge_reasonings([group], archive, judge)
    assert [pair.kind for pair in pairs]==["answer", "answer", "reasoning", "reasoning"]
    assert len(pairs)==4 and {pair.question for pair in pairs}=={"Which?"}

def test_a_judged_answer_makes_the_reference_on_the_first_visit():
    "The paper's order: answers, then the archive, then consistency"
    sample = Sample("a", (), "Is the kite large?", "Yes, the kite is large.", boxes=(TARGET,), source="kites")
    good = Parsed("The kite <box>[10,10,30,30]</box> is large.", "yes", ((10., 10., 30., 30.),), well_formed=True, wrote_boxes=True)
    rollouts = [Rollout(Stream.GROUNDED, [], [], "", parsed=good),
                Rollout(Stream.TEXTUAL, [], [], "", parsed=Parsed("The kite is large.", "Yes.", well_formed=True)),
                Rollout(Stream.TEXTUAL, [], [], "", parsed=Parsed("The kite is small.", "It is not.", well_formed=True))]
    calls = []
    def judge(pairs):
        calls.append([pair.kind for pair in pairs])
        return [.1 if "small" in pair.candidate or "not" in pair.candidate else .8 for pair in pairs]
    accuracy = partial(answer_accuracy, rules={"kites": "judge"})
    archive,g = Archive(),Group(sample, rollouts, Frame.original(60, 60), (60, 60))
    stats = score_groups([g], archive, judge, 0, accuracy=accuracy)
    assert calls==[["answer"]*3, ["reasoning"]*2]
    assert archive.get("a").batch==0 and stats["archive/updates"]==1
    assert [r.reward.parts for r in g.of(Stream.TEXTUAL)]==[dict(format=1., accuracy=1., consistency=.8), dict(format=1., accuracy=0., consistency=.1)]

@pytest.mark.parametrize("bad", ["", " ", "<box>[1,2,3,4]</box>", "The red\0 tile.", "red "*20_000])
def test_a_text_that_nobody_can_judge_never_beats_a_contradiction(bad):
    "A judge that is down leaves pairs missing; a text's own fault is 0, whatever the judge"
    g, = groups_of([("a", [(30., "blue", True)], [(SAYS[0], "blue", True, False), (SAYS[2], "blue", True, False), (bad, "blue", True, False)])])
    stats = score_groups([g], Archive(), RubricJudge(), 0)
    assert [r.reward.parts["consistency"] for r in g.of(Stream.TEXTUAL)]==[1., 0., 0.]
    assert stats["textual/unjudgeable"]==pytest.approx(1/3) and stats["judge/pairs"]==2
    down, = groups_of([("a", [(30., "blue", True)], [(SAYS[0], "blue", True, False), (bad, "blue", True, False)])])
    score_groups([down], Archive(), lambda pairs: [None]*len(pairs), 0)
    assert [r.reward.parts["consistency"] for r in down.of(Stream.TEXTUAL)]==[None, 0.]
