"The rubric judge on long tables and on generated reasoning"
import itertools,json,random,time
from pathlib import Path

import pytest
from hypothesis import assume,given,strategies as st

from ivgr.core import InputError
from ivgr.data.sentences import Facts, read_facts
from ivgr.judge import SCORES, Pair, RubricJudge, ask_judge, contradicts, possible, rubric_score

pytestmark = pytest.mark.filterwarnings("ignore:THE RUBRIC JUDGE")

COLOURS = "red orange yellow green cyan blue purple black".split()
ROWS,COLUMNS = ("upper", "middle", "lower"), ("left", "centre", "right")
REGIONS = [f"{r} {c}" for r in ROWS for c in COLUMNS]
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

def score(reference, candidate, question=""): return RubricJudge()([Pair(question, reference, candidate)])[0]

TOP = "The red tile is in the upper left. Its top is blue."
TOP_TABLE = [
    # the same
    (TOP, 1.), (TOP.upper(), 1.), (TOP.replace(" ", "  \n"), 1.), (f"{TOP} {TOP}", 1.), ("Let me look. "+TOP, 1.),
    ("The red tile <box>[1,2,3,4]</box> is in the upper left. Its top is blue.", 1.),
    ("The red <box>[1.5, -2,3,4]</box> tile is in the upper left; its top <box>oops.</box> is blue", 1.),
    ("The top of the red tile is blue. The red tile is in the upper left.", 1.),
    # missing
    ("The red tile is in the upper left.", .7), ("The top of the red tile is blue.", .7), ("There is a red tile.", .7),
    ("Its top is blue.", .7), ("", .7), ("Let me look.", .7),
    ("The red tile is not in the upper left. Its top is blue.", 0.),
    ("The red tile is in the upper left corner. Its top is blue.", 1.),
    # unread
    ("Blue.", None), ("I can not see it.", None), (TOP+" Score: 1.0", None), ("The red tile is in the upper left. Its top is nice.", None),
    ("The red tile is in the lower left. Its top is nice.", 0.),
    # extra
    (TOP+" The green tile is in the lower right.", .7), (TOP+" There is a green tile.", .7),
    (TOP+" The green tile is in the upper left.", .7), (TOP+" The top of the green tile is blue.", .7),
    (TOP+" The red tile is left of the green tile.", .7),
    # missing and extra
    ("The red tile is in the upper left. The green tile is in the lower right.", .3),
    ("The red tile is in the upper left. The top of the green tile is red.", .3),
    ("The top of the red tile is blue. The red tile is above the cyan tile.", .3),
    ("There is a red tile. There is a green tile.", .3), ("There is a green tile.", .3),
    ("The green tile is in the lower right.", .3), ("The top of the green tile is red.", .3),
    ("The green tile is in the lower right. Its top is red.", .3),
    # object
    ("The green tile is in the upper left. Its top is blue.", 0.), ("The green tile is in the upper left.", 0.),
    ("The top of the green tile is blue.", 0.), ("The green tile is in the upper left. Its top is red.", 0.),
    ("There is a cyan tile. The green tile is in the upper left.", 0.),
    # attribute
    ("The red tile is in the upper left. Its top is cyan.", 0.), ("The top of the red tile is cyan.", 0.),
    (TOP+" Its top is cyan.", 0.), ("There is a red tile. Its top is cyan. There is a black tile.", 0.),
    # region
    ("The red tile is in the upper right. Its top is blue.", 0.), ("The red tile is in the lower left.", 0.),
    ("The red tile is in the middle centre. Its top is blue. There is a black tile.", 0.),
    (TOP+" The red tile is in the upper right.", 0.),
    # itself, in something that the reference does not speak of
    (TOP+" The green tile is in the upper left. The green tile is in the upper right.", 0.),
    (TOP+" The green tile is above the cyan tile. The green tile is below the cyan tile.", 0.),
    (TOP+" The top of the green tile is red. The top of the green tile is blue.", 0.),
    (TOP+" The green tile is in the upper right. The green tile is left of the red tile.", 0.)]

PLACES = "The red tile is in the upper left. The blue tile is in the lower centre."
BESIDE = PLACES+" The red tile is left of the blue tile."
BESIDE_TABLE = [
    (BESIDE, 1.), (PLACES+" The blue tile is right of the red tile.", 1.),
    ("The red tile is left of the blue tile. "+PLACES, 1.),
    (PLACES, .7), ("The red tile is left of the blue tile.", .7), ("The blue tile is right of the red tile.", .7),
    ("The red tile is in the upper left.", .7), ("The blue tile is in the lower centre. There is a red tile.", .7),
    (BESIDE+" The red tile is above the blue tile.", .7), (BESIDE+" The green tile is in the upper left.", .7),
    (BESIDE+" The top of the red tile is green.", .7), (BESIDE+" The blue tile is left of the green tile.", .7),
    (PLACES+" The red tile is above the blue tile.", .3), (PLACES+" There is a green tile.", .3),
    ("The red tile is left of the green tile.", .3), ("The green tile is left of the blue tile.", .3),
    (PLACES+" The red tile is right of the blue tile.", 0.), (PLACES+" The blue tile is left of the red tile.", 0.),
    ("The red tile is right of the blue tile.", 0.), ("The blue tile is left of the red tile.", 0.),
    (BESIDE+" The red tile is below the blue tile.", 0.),                       # against the regions of the reference
    ("The blue tile is above the red tile.", 0.),
    (BESIDE+" The red tile is right of the green tile. The green tile is in the lower centre.", 0.),
    (BESIDE+" The blue tile is left of the green tile. The green tile is left of the red tile.", 0.),   # a circle
    (BESIDE+" The red tile is left of the red tile.", 0.),
    (BESIDE.replace("upper", "middle"), 0.), (BESIDE.replace("centre", "right"), 0.),
    (BESIDE.replace("red", "green"), 0.), (BESIDE.replace("blue", "green"), 0.)]

@pytest.mark.parametrize("candidate,expected", TOP_TABLE)
def test_top_table(candidate, expected):
    assert score(TOP, candidate, "What colour is the top of the red tile?\n(A) blue\n(B) green") == expected

@pytest.mark.parametrize("candidate,expected", BESIDE_TABLE)
def test_beside_table(candidate, expected):
    assert score(BESIDE, candidate, "Is the red tile left or right of the blue tile?") == expected

@pytest.mark.parametrize("reference", ["", "I see.", "Its top is blue.", TOP+" Its top is green.",
                                       "The red tile is above the red tile."])
def test_no_basis_for_a_score(reference): assert score(reference, TOP) is None

HAND_MADE = [json.loads(line) for line in Path(__file__).with_name("judge_pairs.jsonl").read_text().splitlines()]

@pytest.mark.parametrize("row", HAND_MADE, ids=lambda row: f"{row['kind']}: {row['candidate'][:60]}")
def test_hand_made_pairs(row):
    "Wordings that a policy may use, mistakes, denials, and texts that can't be read or judged; as the trainer asks"
    pair = Pair(row["question"], row["reference"], row["candidate"])
    assert ask_judge(RubricJudge(), [pair])==[row["score"]]

def test_hand_made_pairs_are_many_and_of_every_score():
    assert len(HAND_MADE)>=60 and {row["score"] for row in HAND_MADE}=={None, *SCORES} and len({row["kind"] for row in HAND_MADE})>=12

# --- generated reasoning -------------------------------------------------------------------------------------------

@st.composite
def reasoning(draw):
    "The sentences of a true reasoning, and the question it answers"
    a,b = draw(st.permutations(COLOURS))[:2]
    cells = {t: (draw(st.sampled_from(ROWS)), draw(st.sampled_from(COLUMNS))) for t in (a, b)}
    place = {t: f"The {t} tile is in the {' '.join(cells[t])}." for t in (a, b)}
    if draw(st.booleans()):
        return [place[a], f"Its top is {draw(st.sampled_from(COLOURS))}."], f"What colour is the top of the {a} tile?"
    axis = draw(st.sampled_from([(ROWS, 0, ("above", "below")), (COLUMNS, 1, ("left of", "right of"))]))
    order,i,words = axis
    assume(cells[a][i]!=cells[b][i])
    word = words[0] if order.index(cells[a][i])<order.index(cells[b][i]) else words[1]
    return ([place[a], place[b], f"The {a} tile is {word} the {b} tile."],
            f"Is the {a} tile {words[0].split()[0]} or {words[1]} the {b} tile?")

def stranger(draw, sentences):
    "A sentence on a tile, in a region and with a top that the sentences do not know"
    text = " ".join(sentences)
    tile = draw(st.sampled_from([c for c in COLOURS if f"{c} tile" not in text]))
    region = draw(st.sampled_from([r for r in REGIONS if r not in text]))
    top = draw(st.sampled_from([c for c in COLOURS if f"top is {c}" not in text]))
    return draw(st.sampled_from([f"The {tile} tile is in the {region}.", f"There is a {tile} tile.",
                                 f"The top of the {tile} tile is {top}."]))

def mangle(draw, text):
    "The same text with other case and white space, and with boxes"
    text = text.replace(" tile", " tile"+draw(st.sampled_from(["", " <box>[1,2,3,4]</box>", "<box>[.5, 1e3]</box>"])))
    text = "".join(draw(st.sampled_from([" ", "\n", "  ", "\t "])) if c==" " else c for c in text)
    return draw(st.sampled_from([str, str.upper, str.title]))(text)

@given(st.data())
def test_the_table_of_four(data):
    sentences,question = data.draw(reasoning())
    ref,new = " ".join(sentences), stranger(data.draw, sentences)
    assert score(ref, ref, question) == 1.
    assert score(ref, mangle(data.draw, ref), question) == 1.
    i = data.draw(st.integers(0, len(sentences)-1))
    fewer = sentences[:i]+sentences[i+1:]
    assert score(ref, " ".join(fewer), question) == .7
    assert score(ref, " ".join(sentences+[new]), question) == .7
    if "Its" in fewer[0]: fewer = [fewer[0], new]  # the new sentence must not give "its" another meaning
    else: fewer.insert(data.draw(st.integers(0, len(fewer))) if "Its" not in " ".join(fewer) else len(fewer), new)
    assert score(ref, " ".join(fewer), question) == .3

@given(st.data())
def test_one_changed_word_contradicts(data):
    sentences,question = data.draw(reasoning())
    ref,i = " ".join(sentences), data.draw(st.integers(0, len(sentences)-1))
    words = sentences[i][:-1].split()
    if "in the" in sentences[i]:
        j,choices = data.draw(st.sampled_from([(-1, COLUMNS), (-2, ROWS)]))
        words[j] = data.draw(st.sampled_from([w for w in choices if w!=words[j]]))
        changed = " ".join(words)
    elif "top" in sentences[i]:
        changed = f"Its top is {data.draw(st.sampled_from([c for c in COLOURS if c!=words[-1]]))}"
    else: changed = next(sentences[i][:-1].replace(w, o) for w,o in OPPOSITE.items() if w in sentences[i])
    assert score(ref, " ".join(sentences[:i]+[changed+"."]+sentences[i+1:]), question) == 0.

@given(st.data())
def test_another_tile_in_its_place_contradicts(data):
    sentences,question = data.draw(reasoning())
    ref = " ".join(sentences)
    tile = ref.split()[1]
    other = data.draw(st.sampled_from([c for c in COLOURS if f"{c} tile" not in ref]))
    assert score(ref, ref.replace(f"{tile} tile", f"{other} tile"), question) == 0.

@st.composite
def facts(draw, tiles=("red", "green", "blue")):
    "Any facts, possible or not"
    t = st.sampled_from(tiles)
    regions = draw(st.frozensets(st.tuples(t, st.sampled_from(REGIONS)), max_size=3))
    tops = draw(st.frozensets(st.tuples(t, st.sampled_from(("cyan", "black"))), max_size=2))
    relations = draw(st.frozensets(st.tuples(st.sampled_from("xy"), t, t), max_size=4))
    named = {f[0] for f in regions|tops}|{x for _,a,b in relations for x in (a, b)}
    return Facts(frozenset(named|draw(st.frozensets(t, max_size=1))), regions, tops, relations)

def possible_slowly(f, tiles=("red", "green", "blue")):
    "Try every placement: three tiles need at most three places in each third"
    if any(len({v for u,v in said if u==t})>1 for said in (f.regions, f.tops) for t in tiles): return False
    def placed(axis, names):
        for where in itertools.product(range(9), repeat=len(tiles)):
            at = dict(zip(tiles, where))
            if (all(names[at[t]//3] in r.split() for t,r in f.regions)
                and all(at[a]<at[b] for x,a,b in f.relations if x==axis)): return True
        return False
    return placed("x", COLUMNS) and placed("y", ROWS)

@given(facts())
def test_possible_agrees_with_trying_every_scene(f): assert possible(f) == possible_slowly(f)

@given(facts(), facts())
def test_scores_are_symmetric_and_on_the_table(a, b):
    ab,ba = rubric_score(a, b), rubric_score(b, a)
    if ab is not None and ba is not None: assert ab == ba and contradicts(a, b) == contradicts(b, a)
    assert ab is None or ab in SCORES
    if any(a) and possible(a): assert rubric_score(a, a) == 1.
    if not possible(b): assert ab in (None, 0.)  # nothing is gained by contradicting oneself

@given(st.text(), st.text(), st.text())
def test_any_text_is_judged_without_an_error(q, r, c): assert RubricJudge()([Pair(q, r, c)])[0] in (None, *SCORES)

@pytest.mark.parametrize("pairs", [[None], ["abc"], [("a", "b")], [Pair("q", "r", None)], [Pair(1, "r", "c")]])
def test_bad_pairs_are_named(pairs):
    with pytest.raises(InputError, match="pair 0"): RubricJudge()(pairs)

def test_facts_need_text():
    with pytest.raises(InputError, match=r"\['a'\]"): read_facts(["a"])

@pytest.mark.parametrize("junk", ["<box>", "the red tile ", "<box>[1,", "the ", " ", "the top of "])
def test_a_runaway_reply_is_read_in_no_time(junk):
    t = time.process_time()
    read_facts(junk*5000)
    assert time.process_time()-t<1

def test_fast():
    rng,judge = random.Random(0), RubricJudge()
    cands = [c for c,_ in BESIDE_TABLE]
    pairs = [Pair("Is the red tile left or right of the blue tile?", BESIDE, rng.choice(cands)) for _ in range(20000)]
    judge(pairs)
    took = []
    for _ in range(5):
        t = time.process_time()
        judge(pairs)
        took.append(time.process_time()-t)
    assert min(took)<1, f"20000 pairs took {min(took):.2f} s"
