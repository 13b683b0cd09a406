"Where lmms-eval is installed: it finds our policy, and the table of evaluate/lmms is true of both scores"
from types import SimpleNamespace

import pytest

pytest.importorskip("lmms_eval")
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks.cv_bench.utils import cv_bench_process_results
from lmms_eval.tasks.hrbench.hrbench_evals import HRBenchEval
from lmms_eval.tasks.mme_realworld.utils import extract_characters_regex
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score, pope_process_results
from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results
from lmms_eval.tasks.vstar_bench.utils import vstar_process_results

from ivgr.data.answers import accuracy
from ivgr.evaluate.ask import evaluate
from ivgr.evaluate.benchmarks import Needles, yes_scores
from ivgr.evaluate.lmms import manifest

OPTIONS = dict(A="rubber", B="cotton", C="kevlar", D="leather")
QUESTION = "What is the material of the glove?\n" + "\n".join(f"({l}) {t}" for l, t in OPTIONS.items())

def ours(reply):
    return accuracy(reply, "A", QUESTION)

def vstar(reply):
    doc = dict(text=QUESTION, label="A", category="c", question_id="0")
    result, *_ = vstar_process_results(doc, [reply]).values()
    return result["score"]

def hrbench(reply):
    return float(HRBenchEval("none").can_infer(reply, dict(OPTIONS)) == "A")

def realworld(reply):
    return float(extract_characters_regex(reply) == "A")

def cvbench(reply):
    doc = dict(answer="(A)", idx=0, type="2D", task="Count", source="COCO")
    return float(cv_bench_process_results(doc, [reply])["cv_bench_acc"]["is_correct"])

SCORERS = (ours, vstar, hrbench, realworld, cvbench)
TABLE = {  # replies -> what each scorer gives
    ("A", "(A)", "A.", "(A) rubber"): (1, 1, 1, 1, 1),
    ("a",): (1, 1, 0, 1, 1),
    ("The answer is A",): (1, 1, 1, 1, 0),
    ("rubber",): (1, 0, 1, 0, 0),
    ("A or B", "A, B"): (0, 1, 0, 1, 1),
    ("",): (0, 0, 0, 1, 0),
    ("B", "cotton", "(B) cotton", "B or A", "none of them"): (0, 0, 0, 0, 0)}

CASES = [(reply, right) for replies, right in TABLE.items() for reply in replies]

@pytest.mark.parametrize("reply,right", CASES)
def test_table(reply, right):
    assert tuple(score(reply) for score in SCORERS) == right

def pope_score(reply):
    result, *_ = pope_process_results(dict(answer="yes", question_id="0"), [reply]).values()
    return result["score"]

def realworldqa_score(reply):
    return realworldqa_process_results(dict(answer="3"), [reply])["exact_match"]

def test_whole_answers():
    "POPE and RealWorldQA agree with ours on plain answers; more words are right in ours alone"
    for reply, both in (("yes", 1), ("Yes", 1), ("no", 0), ("perhaps", 0)):
        assert pope_score(reply) == accuracy(reply, "yes") == both
    for reply, both in (("3", 1), ("3.", 1), ("4", 0)):
        assert realworldqa_score(reply) == accuracy(reply, "3") == both
    assert (pope_score("Yes, there is."), accuracy("Yes, there is.", "yes")) == (0, 1)
    assert (realworldqa_score("three"), accuracy("three", "3")) == (0, 1)

def f1_scores(replies):
    "lmms-eval's F1 of yes, and ours"
    truths = ["yes", "no", "yes", "no", "yes", "no"]
    scored = []
    rows = []
    for reply, truth in zip(replies, truths):
        scored.append(pope_process_results(dict(answer=truth, question_id="0"), [reply])["pope_f1_score"])
        rows.append(dict(answer=reply, truth=truth, accuracy=float(reply == truth), question="", question_type="random"))
    return pope_aggregate_f1_score(scored), yes_scores(rows)["F1"]

@pytest.mark.parametrize("replies", [["yes", "yes", "no", "no", "yes", "no"], ["no"] * 6, ["yes"] * 6])
def test_f1_of_pope(replies):
    lmms_f1, our_f1 = f1_scores(replies)
    assert lmms_f1 == pytest.approx(our_f1)

def test_f1_of_pope_without_an_answer():
    "A reply that says neither yes nor no is a miss in ours alone"
    assert f1_scores(["yes", "yes", "no", "no", "maybe", "no"]) == pytest.approx((2 * (1/2) * (1/2) / 1, 2/5))

def test_lmms_eval_finds_and_runs_it():
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    arguments = "pretrained=tiny,mode=textual,max_new_tokens=64"
    model_class = registry.get_model_class("ivgr")
    model = model_class.create_from_arg_string(arguments, {"batch_size": 2, "device": "cpu"})
    samples = Needles("needle-easy")[:3]
    model.task_dict = {"needle": {"test": [dict(image=sample.images[0]) for sample in samples]}}

    def load(doc):
        return [doc["image"]]

    def request(number, question):
        return SimpleNamespace(args=(question, dict(max_new_tokens=16), load, number, "needle", "test"))

    answers = model.generate_until([request(k, sample.question) for k, sample in enumerate(samples)])
    rows = evaluate(model.policy, samples, "textual", max_new_tokens=64, progress=False)
    assert answers == [row["answer"] for row in rows]
