"Where lmms-eval is installed: it finds our policy, and the table of notebook 27 is true of both scores"
import pytest

pytest.importorskip("lmms_eval")
from lmms_eval.models.registry_v2 import ModelRegistryV2
from lmms_eval.tasks.cv_bench.utils import cv_bench_process_results
from lmms_eval.tasks.hrbench.hrbench_evals import HRBenchEval
from lmms_eval.tasks.mme_realworld.utils import extract_characters_regex
from lmms_eval.tasks.pope.utils import pope_aggregate_f1_score,pope_process_results
from lmms_eval.tasks.realworldqa.utils import realworldqa_process_results
from lmms_eval.tasks.vstar_bench.utils import vstar_process_results

from ivgr.evaluate.benchmarks import yes_scores
from ivgr.evaluate.lmms import manifest
from ivgr.data.answers import accuracy

OPTIONS = dict(A="rubber", B="cotton", C="kevlar", D="leather")
QUESTION = "What is the material of the glove?\n"+"\n".join(f"({l}) {t}" for l,t in OPTIONS.items())

def vstar(reply): return next(iter(vstar_process_results(dict(text=QUESTION, label="A", category="c", question_id="0"), [reply]).values()))["score"]
def hrbench(reply): return float(HRBenchEval("none").can_infer(reply, dict(OPTIONS))=="A")
def realworld(reply): return float(extract_characters_regex(reply)=="A")
def cvbench(reply): return float(cv_bench_process_results(dict(answer="(A)", idx=0, type="2D", task="Count", source="COCO"), [reply])["cv_bench_acc"]["is_correct"])

TABLE = {("A", "(A)", "A.", "(A) rubber"):(1, 1, 1, 1, 1), ("a",):(1, 1, 0, 1, 1), ("The answer is A",):(1, 1, 1, 1, 0), ("rubber",):(1, 0, 1, 0, 0),
         ("A or B", "A, B"):(0, 1, 0, 1, 1), ("",):(0, 0, 0, 1, 0), ("B", "cotton", "(B) cotton", "B or A", "none of them"):(0, 0, 0, 0, 0)}

@pytest.mark.parametrize("reply,right", [(r, right) for replies,right in TABLE.items() for r in replies])
def test_table(reply, right):
    assert (accuracy(reply, "A", QUESTION), vstar(reply), hrbench(reply), realworld(reply), cvbench(reply))==right

def test_whole_answers():
    "POPE and RealWorldQA agree with ours on plain answers; more words are right in ours alone"
    pope = lambda reply: next(iter(pope_process_results(dict(answer="yes", question_id="0"), [reply]).values()))["score"]
    world = lambda reply: realworldqa_process_results(dict(answer="3"), [reply])["exact_match"]
    for reply,both in (("yes", 1), ("Yes", 1), ("no", 0), ("perhaps", 0)): assert pope(reply)==accuracy(reply, "yes")==both
    for reply,both in (("3", 1), ("3.", 1), ("4", 0)): assert world(reply)==accuracy(reply, "3")==both
    assert (pope("Yes, there is."), accuracy("Yes, there is.", "yes"))==(0, 1)
    assert (world("three"), accuracy("three", "3"))==(0, 1)

def test_f1_of_pope():
    "The same where every reply says yes or no; a reply that says neither is a miss in ours alone"
    def both(said):
        truths = ["yes", "no", "yes", "no", "yes", "no"]
        theirs = pope_aggregate_f1_score([pope_process_results(dict(answer=t, question_id="0"), [s])["pope_f1_score"] for s,t in zip(said, truths)])
        ours = yes_scores([dict(answer=s, truth=t, accuracy=float(s==t)) for s,t in zip(said, truths)])["F1"]
        return theirs,ours
    for said in (["yes", "yes", "no", "no", "yes", "no"], ["no"]*6, ["yes"]*6): assert both(said)[0]==pytest.approx(both(said)[1])
    assert both(["yes", "yes", "no", "no", "maybe", "no"])==pytest.approx((2*(1/2)*(1/2)/1, 2/5))

def test_lmms_eval_finds_and_runs_it():
    from types import SimpleNamespace
    from ivgr.evaluate.benchmarks import Needles
    from ivgr.evaluate.ask import evaluate
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    model = registry.get_model_class("ivgr").create_from_arg_string("pretrained=tiny,mode=textual,max_new_tokens=64", {"batch_size":2, "device":"cpu"})
    samples = Needles("needle-easy")[:3]
    model.task_dict = {"needle":{"test":[dict(image=s.images[0]) for s in samples]}}
    given = model.generate_until([SimpleNamespace(args=(s.question, dict(max_new_tokens=16), lambda d: [d["image"]], k, "needle", "test")) for k,s in enumerate(samples)])
    assert given==[r["answer"] for r in evaluate(model.policy, samples, "textual", max_new_tokens=64, progress=False)]
