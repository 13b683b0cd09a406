"Pairs with known scores, and the counting of what a judge makes of them"
import json,random
from bisect import bisect

import pytest
from hypothesis import given,settings,strategies as st

from ivgr.core import InputError
from ivgr.needle import NeedleConfig
from ivgr.evaluate.statistics import wilson
from ivgr.evaluate.judge_check import NoisyJudge
from ivgr.data.sentences import read_facts
from ivgr.judge import SCORES, RubricJudge
from ivgr.evaluate.judge_check import PAIR_KINDS, check, draw_confusion, judge_check, make_pairs, judge_report

MANY = make_pairs(1800)
PAIRS = MANY[:36]
CONFIGS = [NeedleConfig(objects=2), NeedleConfig(objects=3, relations=0.), NeedleConfig(objects=4, relations=1., size=128),
           NeedleConfig(objects=7, size=160, clutter=6)]

@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_rubric_judge_is_right_about_every_pair(cfg, split):
    pairs = make_pairs(90, cfg, seed=3, split=split)
    wrong = [(k, s) for k,s in zip(pairs, RubricJudge()([k.pair for k in pairs])) if s!=k.score]
    assert not wrong

@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_each_kind_is_what_its_name_says(cfg):
    for kind,(_,reference,candidate,_),_ in make_pairs(180, cfg, seed=5):
        r,c = read_facts(reference),read_facts(candidate)
        missing,extra = (set().union(*(a-b for a,b in zip(x, y))) for x,y in ((r, c), (c, r)))
        assert candidate!=reference and "<box>" not in candidate
        if kind=="paraphrase": assert r==c
        if kind in ("omission", "both"): assert missing
        if kind in ("addition", "both"): assert extra
        if kind=="omission": assert not extra
        if kind=="addition": assert not missing
        if kind=="object": assert c.objects-r.objects and r.objects-c.objects
        if kind=="top": assert c.tops!=r.tops and c.objects==r.objects and c.regions==r.regions
        if kind=="region": assert len(c.regions-r.regions)==1 and c.tops==r.tops and c.relations==r.relations
        if kind=="relation": assert c.relations!=r.relations and c.regions==r.regions

def test_pairs_depend_on_their_arguments_only():
    pairs = make_pairs(60)
    random.seed(1)
    assert make_pairs(60)==pairs and make_pairs(20)==pairs[:20]
    texts = {k.pair for k in pairs}
    for other in (dict(seed=1), dict(split="train"), dict(cfg=NeedleConfig(objects=2))):
        assert not texts&{k.pair for k in make_pairs(60, **other)}
    assert [k.kind for k in pairs[:len(PAIR_KINDS)]]==list(PAIR_KINDS) and {k.score for k in pairs}==set(SCORES)

def test_injections_take_every_form():
    ends = {k.pair.candidate.rsplit(" tile", 1)[1].split(".", 1)[1] for k in MANY if k.kind=="injection"}
    assert len(ends)==7 and all(ends)

@pytest.mark.parametrize("kwargs,message", [(dict(n=0), "n=0"), (dict(cfg=NeedleConfig(objects=1)), "objects=1"),
                                            (dict(cfg=NeedleConfig(objects=8, size=160)), "objects=8"),
                                            (dict(split="dev"), "'dev'")])
def test_bad_settings_are_named(kwargs, message):
    with pytest.raises(InputError, match=message): make_pairs(**kwargs)

@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([None, 0., .1, .2, .3, .4, .6, .7, .8, .9, 1]), min_size=36, max_size=36))
def test_counts_agree_with_a_plain_loop(given_scores):
    r = check(lambda pairs: given_scores, PAIRS)
    scored = [(k.score, s) for k,s in zip(PAIRS, given_scores) if s is not None]
    assert sum(map(sum, r["confusion"]))==r["n"]==36 and r["scored"]==len(scored)
    assert [sum(row) for row in r["confusion"]]==[sum(k.score==s for k in PAIRS) for s in SCORES]
    assert sum(row[-1] for row in r["confusion"])==36-len(scored)==sum(k["missing"] for k in r["kinds"].values())
    assert r["right"]==sum(t==SCORES[bisect((.15, .5, .85), s)] for t,s in scored)
    if scored:
        assert r["bias"]==pytest.approx(sum(s-t for t,s in scored)/len(scored))
        assert r["error"]==pytest.approx(sum(abs(s-t) for t,s in scored)/len(scored))
    assert json.loads(json.dumps(r))==r and len(judge_report(r).splitlines())==6+1+2+len(PAIR_KINDS)+1+1

def test_bias_has_the_sign_of_generosity():
    assert check(lambda pairs: [1.]*len(pairs), PAIRS)["bias"]>0 and check(lambda pairs: [0.]*len(pairs), PAIRS)["bias"]<0

@pytest.mark.parametrize("rate", [0., .05, .3, 1.])
@pytest.mark.parametrize("seed", [0, 1])
def test_noise_comes_at_the_known_rate(rate, seed):
    r = check(NoisyJudge(RubricJudge(), rate, seed, missing=.1), MANY)
    low,high = wilson(r["scored"]-r["right"], r["scored"])
    assert low<=rate<=high or rate in (0., 1.) and r["accuracy"]==1-rate
    low,high = wilson(r["n"]-r["scored"], r["n"])
    assert low<=.1<=high

def test_wrong_levels_are_equally_likely():
    row = check(NoisyJudge(RubricJudge(), 1.), MANY)["confusion"][0]
    n = sum(row)
    assert row[0]==0 and max(abs(c/n-1/3) for c in row[1:4])<3*(2/9/n)**.5, row

def test_noise_depends_on_the_content_alone():
    pairs,judge = [k.pair for k in MANY[:200]],NoisyJudge(RubricJudge(), .3, missing=.1)
    scores = judge(pairs)
    order = random.Random(0).sample(range(200), 200)
    random.seed(7)
    assert judge([pairs[i] for i in order])==[scores[i] for i in order]
    assert [NoisyJudge(RubricJudge(), .3, missing=.1)([p])[0] for p in pairs]==scores
    assert NoisyJudge(RubricJudge(), .3, 1, missing=.1)(pairs)!=scores

@pytest.mark.parametrize("kwargs", [dict(rate=-.1), dict(rate=1.1), dict(rate=.1, missing=2), dict(rate=float("nan"))])
def test_a_share_lies_between_0_and_1(kwargs):
    with pytest.raises(InputError, match="between 0 and 1"): NoisyJudge(RubricJudge(), **kwargs)

def test_the_figure_shows_the_counts():
    results = {name:judge_check(NoisyJudge(RubricJudge(), rate), 45) for name,rate in (("exact", 0.), ("noisy", .4))}
    fig = draw_confusion(results)
    assert [ax.get_title("left") for ax in fig.axes]==list(results)
    for ax,r in zip(fig.axes, results.values()):
        assert [t.get_text() for t in ax.texts]==[str(c) for row in r["confusion"] for c in row]
    assert fig.axes[0].get_ylabel() and all(ax.get_xlabel() for ax in fig.axes)

def test_what_a_judge_reports_is_told():
    class Counting(RubricJudge):
        def report(self): return {"calls":90, "failed/timeout":3, "seconds":4.5}
    text = judge_report(judge_check(Counting(), 9))
    assert "calls 90, failed/timeout 3; 20 calls per second" in text
    assert "calls per second" not in judge_report(judge_check(Counting(), 9), speed=False)
    assert "reports" not in judge_report(judge_check(RubricJudge(), 9))
