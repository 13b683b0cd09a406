"Rewards on long tables and on generated input"
import math
from decimal import Decimal
from fractions import Fraction

import pytest
import torch
from hypothesis import given,settings,strategies as st

from ivgr.boxes import paper_box_reward
from ivgr.core import Frame, InputError, Parsed, Reward, Rollout, Sample, Stream
from ivgr.data.answers import (
    RULES, accuracy, choose_rule, picks, read_number, read_options, read_rules, read_yes_no,
)
from ivgr.prompts import parse
from ivgr.rewards import UNPAIRED_WEIGHTS, WEIGHTS, base_rewards, format_reward, totals, true_boxes

WORDS = "red orange yellow green cyan blue purple black left right above below".split()
ASKED = "What colour is the top of the red tile?\n(A) blue\n(B) green\n(C) black"
PEOPLE = "Who is it?\n(A) A man\n(B) A woman holding an umbrella\n(C) a dog"

# truth, question: right replies; wrong replies
TABLE = [
    ("B", "", ["B", "b", "(B)", "(b)", "B.", "b.", "B)", "[B]", "**B**", "**B.** green", " B \n", "(B) green",
               "B. green", "B: green", "B, green", "B - green", "B green", "green (B)", "The answer is B",
               "The answer is (b).", "Answer: B", "Option B", "The correct answer is option B.",
               "So, the final answer is **(B)**.", "(B) is correct", "I think B", r"\boxed{B}",
               "The answer is B, not A"],  # what is denied is no second answer
              ["A", "(A) green", "A or B", "a or b", "A, B", "a,b", "A/B", "AB", "(A) (B)", "(A) or (B)", "B. No, C",
               "blue (A) (B)", "green", "Because", "bee", "", "  ", None, "?", "option",
               "The answer is"]),
    ("(B)", "", ["B", "b.", "(B)"], ["A", "A and B"]),
    ("b.", "", ["B", "(b)"], ["A", "A and B"]),
    ("I", "", ["I", "(I)", "i."], ["II", "1", "A"]),
    ("A", "", ["A", "I choose A", "A because it is red", "It is A as shown", "A is right", "A: not visible", "A Ferrari"],
              ["A dog", "A dog. A cat", "Not A", "It is not A", "It isn't A", "A is wrong", "(A) is not right", "(A) isn't it",
               "anything but (A)", "Neither A"]),
    ("A", ASKED, ["The answer is A as shown", "The answer is A based on the image", "Option A matches the image", "A looks right", "A\n\nthe tile is blue",
                  "The answer is A because the tile is not green", "A is correct; the others are wrong", "(A) is right; it isn't green"],
                 ["The answer is not A", "A isn't it", "neither A nor B"]),
    ("B", ASKED, ["The answer is B as shown", "The answer is B based on the image", "Option B matches the image", "B looks right", "B\n\nthe tile is green",
                  "The answer is B because the tile is not blue", "B is correct; the others are wrong", "(B) is right; it isn't blue"],
                 ["The answer is not B", "B isn't it", "not option B"]),
    ("A", PEOPLE, ["A man", "a man", "A a man", "(A) A man", "A"],
                  ["A woman", "A woman with an umbrella", "A woman holding an umbrella", "A cat", "B a man"]),
    ("C", PEOPLE, ["A dog", "C a dog", "c dog"], ["A cat", "Not a dog"]),
    ("B", ASKED, ["B", "(b)", "green", "Green.", "the green", "The answer is green.", "(B) green",
                 "The answer is (B) green."],
                 ["blue", "(B) blue", "(A) green", "green or blue", "D", "B or D", "(A) blue (B) green", "red", "A"]),
    ("green", ASKED, ["B", "(b)", "(B) green", "Option B", "green"], ["A", "(A) green", "(B) blue", "A or B", "blue"]),
    ("(B) green", ASKED, ["B", "green", "(B) green"], ["A", "blue", "(B) blue", "(A) green"]),
    ("B. green", ASKED, ["(B)", "green", "(B) green"], ["A", "blue", "(B) blue", "(A) green"]),
    ("D", ASKED, ["D", "(d)"], ["A", "blue"]),    # the data are wrong, the comparison is not
    ("red", ASKED, ["red"], ["A", "blue"]),
    ("A", "?\n(A) vitamin C\n(B) iron\n(C) zinc", ["A", "vitamin C", "(A) vitamin C"], ["C", "zinc", "(C) vitamin C"]),
    ("vitamin C", "?\n(A) vitamin C\n(B) iron\n(C) zinc", ["A", "vitamin C"], ["C", "zinc"]),
    ("A", "?\n(A) B\n(B) A", ["A", "(A) B"], ["B", "(B) A", "(B)"]),
    ("blue", "", ["blue", "Blue.", "  BLUE ", '"blue"', "the blue", "The answer is blue.", "(B) blue", "A: blue"],
                 ["green", "not blue", "blue green", "B", "(A) (B) blue", "blues"]),
    ("(B) blue", "", ["blue", "B", "(B) blue", "b. blue"], ["(C) blue", "C", "green", "A or B"]),
    ("vitamin C", "", ["vitamin C", "Vitamin c."], ["C", "vitamin"]),
    ("left of", "", ["left\nof", "Left of."], ["left", "right of"]),
    ("the cat", "", ["a cat", "cat", "The cat."], ["the dog", "the"]),
    ("5", "", ["5", "5.", "The answer is 5.", "(5)", "$5$"], ["-5", ".5", "5%", "5'", "15", "5 5"]),
    ("23", "", ["23"], ["2**3", "2 3", "2*3"])]
TABLE = [(r, t, q, want) for t,q,*replies in TABLE for rs,want in zip(replies, (1, 0)) for r in rs]

@pytest.mark.parametrize("reply,truth,question,right", TABLE)
def test_accuracy(reply, truth, question, right): assert accuracy(reply, truth, question) == right

FORMS = ["{l}", "({l})", "{l}.", "{l})", "[{l}]", "**{l}**", "({l}) {t}", "{l}. {t}", "{l}: {t}", "{l}) {t}",
         "The answer is {l}", "The answer is ({l}) {t}.", "Answer: {l}", "So the correct option is ({l}).", " {l}\n"]

@st.composite
def choices(draw):
    "A question with options, the right letter, a form of answer"
    options = dict(zip("ABCD", draw(st.lists(st.sampled_from(WORDS), min_size=2, max_size=4, unique=True))))
    style = draw(st.sampled_from(["\n({}) {}", "\n{}. {}", "\n{}) {}", " ({}) {}"]))
    question = "Which one?"+"".join(style.format(l, t) for l,t in options.items())
    return question, options, draw(st.sampled_from(sorted(options)))

@given(choices(), st.sampled_from(FORMS), st.booleans(), st.data())
def test_a_choice_in_any_form(choice, form, lower, data):
    question,options,letter = choice
    assert read_options(question) == options
    other = data.draw(st.sampled_from([l for l in options if l!=letter]))
    say = lambda l,t: form.format(l=l.lower() if lower else l, t=t)
    for truth in (letter, f"({letter})", options[letter], f"({letter}) {options[letter]}"):
        assert accuracy(say(letter, options[letter]), truth, question) == 1
        assert accuracy(options[letter], truth, question) == 1
        assert accuracy(say(other, options[other]), truth, question) == 0
        assert accuracy(options[other], truth, question) == 0
        assert accuracy(f"({letter}) or ({other})", truth, question) == 0
        assert accuracy(f"{letter}, {other}", truth, question) == 0
        assert accuracy(f"({other}) {options[letter]}", truth, question) == 0
        if truth!=options[letter]:  # a letter needs no options
            assert accuracy(say(letter, options[letter]), truth) == 1
    assert len(picks(say(letter, options[letter]), options)) == 1

@given(st.text(), st.text(), st.text())
def test_accuracy_takes_any_text(answer, truth, question):
    if not truth.strip():
        with pytest.raises(InputError): accuracy(answer, truth, question)
        return
    assert accuracy(answer, truth, question) in (0., 1.)
    assert accuracy(truth, truth, question) == 1.
    assert accuracy(f" {truth}\n", truth, question) == 1.
    assert not answer.strip() or accuracy(answer, answer) == 1.
    picks(answer, read_options(question))

@given(st.integers(-999, 999), st.integers(-999, 999))
def test_numbers_are_told_apart(a, b): assert accuracy(f"The answer is {a}.", str(b)) == (a==b)

@pytest.mark.parametrize("args", [("B", None), ("B", ""), ("B", 2), (["B"], "B"), ("B", "B", None)])
def test_bad_answers_are_named(args):
    with pytest.raises(InputError): accuracy(*args)

# --- rules: truth, question, rule (None: told), right replies, wrong replies ---------------------------------------

APPLES,SHARE = "How many apples are there?","Which percentage is blue?"
RULED = [
    ("yes", "", None, ["yes", "Yes.", "YES!", "Yes, it is.", "yes: it is red", "The answer is yes.", "**Yes**", "true", r"\boxed{yes}",
                       "y"],  # alone, it has no other meaning
                      ["no", "yes or no", "yes/no", "Yes. No.", "yes and no", "Not yes", "Yes, it is not.", "Yes, it isn't",
                       "Yes, it isn’t", "yesterday", "It is.", "maybe", "", None, "?", "false", "true or false",
                       "The answer is yes or no"]),
    ("No", "", None, ["no", "No, it is not.", "No, it isn't.", "false", "No; never.", "The answer is: no", "nope"],  # as yep is a yes
                     ["yes", "none", "not", "It is not.", "No... yes", "no or yes", "unknown", "know"]),
    ("True", "", None, ["true", "yes", "True, it is."], ["false", "no", "true or false"]),
    ("yes", "?\n(A) yes\n(B) no", None, ["A", "yes", "(A) yes"], ["B", "no", "(B) yes", "Yes or no"]),
    ("no parking", "", None, ["No parking."], ["no", "parking"]),
    ("5", "", None, ["5", "five", "Five.", "5.0", "+5", "5.", "(5)", "$5$", r"\boxed{5}", "The answer is 5.", "So the answer is: 5",
                    "5!", "05"],  # an exclamation, and digits of a form: nobody means 120, and 05 is 5
                    ["-5", "−5", ".5", "0.5", "5%", "5'", "$5", "15", "5 5", "5,6", "5 or 6", "5-6", "5/6", "5 to 6", "about 5",
                     "~5", "5+", "5ish", "not 5", "5?", "5e0", "50", "V", "5 cm", "5 apples", "five or six", "5, no, 6",
                     "4 5", "5_0"]),
    ("5", APPLES, None, ["5", "5 apples", "five apples", "5 Apples."], ["5 pears", "5%", "apples", "5 5 apples", "5 apples or 6"]),
    ("7", "Is it seven or eleven?", None, ["7", "seven"], ["seven eleven", "7 or eleven", "eleven"]),
    ("5 cm", "How many m are there?", None, ["5 cm"], ["5 m", "5"]),
    ("-5", "", None, ["-5", "−5", "-5.0"], ["5", "+5", "--5", "- 5"]),
    (".5", "", None, ["0.5", ".5", "0.50"], ["5", "-.5", "1/2", "50%"]),
    ("1,200", "", None, ["1200", "1,200", "1200.0", "1,200.00"], ["1.200", "1 200", "1,2,0,0", "12,00", "120", "1.2k", "01,200"]),
    ("1.2", "", None, ["1.2", "1.20"], ["1,2", "12", "1.2.0"]),
    ("12%", "", None, ["12%", "12 %", "12 percent", "12.0%"], ["12", "0.12", "12 cm", "%12", "-12%"]),
    ("12", SHARE, None, ["12", "12%", "12 percent"], ["0.12", "12 reds", "$12"]),
    ("12", "How many % are blue?", None, ["12%", "12 percent"], ["$12"]),
    ("12%", SHARE, None, ["12", "12%"], ["0.12"]),
    ("$3.50", "", None, ["$3.5", "3.50 dollars", "3.50$", "$3.50"], ["3.50", "€3.50", "350", "$3.50 cents"]),
    ("5 cm", "", None, ["5 cm", "5cm", "5.0 cm"], ["5", "5 m", "50 mm", "5 cm or 6 cm"]),
    ("twenty", "", None, ["20", "twenty"], ["2", "twenty one", "twenty-one"]),
    ("007", "", None, ["007"], ["7", "07"]),
    ("10:30", "", None, ["10:30"], ["10", "10.30"]),
    ("2", "", None, ["2", "２"], ["²", "II", "2²"]),  # the full-width form is the same digit, as Ｃ is C
    (r"$\frac{1}{2}$", "", "maths", ["1/2", "0.5", ".5", r"\frac{1}{2}", r"$\dfrac12$", r"\(\frac{2}{4}\)", r"\[0.5\]", "x = 1/2",
                                    r"\boxed{\frac{1}{2}}", "The answer is $0.5$."],
                       ["-1/2", "2", "1/2 or 2", r"\frac{1}{2} ?? or not", "about 1/2", "not 1/2", "1 / 3", "0.51", "", "half",
                        r"\frac{1}{2} 2"]),
    ("5", APPLES, "maths", ["5", "five", "5 apples", "10/2", r"\sqrt{25}", "2+3"],
                           ["-5", ".5", "5 m", "5 cm", "5 or 6", "5, 6", "5 pears"]),
    (r"2\sqrt{2}", "", "maths", [r"\sqrt{8}", r"2 \cdot \sqrt{2}"], ["2.8", r"\sqrt{2}"]),
    ("x^2+2x+1", "", "maths", ["(x+1)^2", "1+2x+x^2"], ["(x-1)^2", "x^2"]),
    (r"\{1, 2\}", "", "maths", ["2, 1", "1 and 2"], ["1", "1, 3"]),
    ("3 1/2", "", "maths", ["3 1/2"], ["2", "3.5"]),  # digits side by side are compared as text only
    ("blue", "", "number", ["blue"], ["red", "5"]),
    ("5", "", "text", ["5", "5."], ["five", "5.0"]),
    ("on a wall", "", "judge", ["On a wall."], ["", None, "  "])]
RULED = [(r, t, q, rule, want) for t,q,rule,*replies in RULED for rs,want in zip(replies, (1, 0)) for r in rs]

@pytest.mark.parametrize("reply,truth,question,rule,right", RULED)
def test_rules(reply, truth, question, rule, right): assert accuracy(reply, truth, question, rule)==right

@pytest.mark.parametrize("truth,question,wanted,rule", [
    ("B", "", None, "choice"), ("green", ASKED, None, "choice"), ("red", ASKED, None, "text"), ("yes", "", None, "yes/no"),
    ("FALSE.", "", None, "yes/no"), ("5", "", None, "number"), ("5 cats", "", None, "number"), ("5 or 6", "", None, "text"),
    ("1/2", "", None, "text"), (r"\frac{1}{2}", "", None, "text"), ("blue", "", None, "text"),
    ("5", "", "maths", "maths"), ("5", "", "judge", "judge"), ("5", "", "text", "text"), ("5", "", "choice", "number"),
    ("blue", "", "yes/no", "text"), ("B", "", "number", "choice")])
def test_the_rule_of_a_truth(truth, question, wanted, rule): assert choose_rule(truth, question, wanted)==rule

def test_only_the_judge_is_asked(): assert accuracy("on the wall", "on a blue wall", "", "judge") is None

numbers = st.decimals(-10**7, 10**7, allow_nan=False, places=3)

@given(numbers, numbers, st.sampled_from(["{}", "{:,}", "{:+}", "**{}**", "${}$", "The answer is {:,}.", "{}%", "{} cm"]))
def test_numbers_in_any_form(a, b, form):
    value,unit = read_number(form.format(a))
    assert value==a and unit==dict({"{}%":"percent", "{} cm":"cm"}).get(form, "")
    for rule in (None, "number"): assert accuracy(form.format(a), form.format(b), "", rule)==(a==b)
    short = f"{a.normalize():f}"
    assert accuracy(form.format(Decimal(short)), form.format(a))==1
    assert accuracy(f"{a} or {b}", str(a))==0 and accuracy(f"about {a}", str(a))==0
    if a: assert accuracy(form.format(-a), form.format(a))==0

@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["yes", "no", "true", "false"]),
       st.lists(st.sampled_from("it is the cat , . ! not yes no true or and".split()), max_size=6))
def test_an_answer_is_never_yes_and_no(first, rest):
    reply = " ".join([first, *rest])
    says = {t: accuracy(reply, t) for t in ("yes", "no")}
    assert sum(says.values())<=1
    said = {dict(true="yes", false="no").get(w, w) for w in (first, *rest)} & {"yes", "no"}
    if len(said)==2: assert not any(says.values()) and read_yes_no(reply) is None

@settings(max_examples=60, deadline=None)
@given(st.integers(-40, 40), st.integers(1, 12), st.integers(-40, 40), st.integers(1, 12))
def test_fractions_are_compared_by_value(a, b, c, d):
    latex = lambda p,q: ("-" if p<0 else "")+rf"$\frac{{{abs(p)}}}{{{q}}}$"
    assert accuracy(latex(a, b), latex(c, d), "", "maths")==(Fraction(a, b)==Fraction(c, d))
    assert accuracy(f"{a}/{b}", latex(a, b), "", "maths")==1

@settings(max_examples=60, deadline=None)
@given(st.text(max_size=30)|st.text("0123456789+-*/^(){}\\$=., x", max_size=8),
       st.sampled_from(["5", r"\frac{1}{2}", "x", "blue", "A", "no"]))
def test_every_rule_takes_any_text(answer, truth):
    for rule in RULES:
        score = accuracy(answer, truth, "", rule)
        assert score in (0., 1.) or score is None and rule=="judge"
        assert accuracy(f" {truth}.", truth, "", rule)==1.

@pytest.mark.parametrize("rules", ['{"a": "math"}', "maths", "[]", {"a":None}, {"a":"Maths"}, '{"a": '])
def test_bad_mappings_are_named(rules):
    with pytest.raises(InputError, match="answer_rules"): read_rules(rules)

# --- format and parts ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("stream", Stream)
@pytest.mark.parametrize("well_formed", [True, False])
@pytest.mark.parametrize("wrote_boxes", [True, False])
def test_format(stream, well_formed, wrote_boxes):
    want = well_formed and (not wrote_boxes or stream is Stream.GROUNDED)
    got = format_reward(Parsed("I look.", "blue", well_formed=well_formed, wrote_boxes=wrote_boxes), stream)
    assert got == want and isinstance(got, float)

FRAMES = [Frame.unit1000(), Frame.resized(84, 56), Frame.original(200, 100)]
box = st.tuples(*[st.integers(0, 40)]*2, *[st.integers(1, 40)]*2).map(lambda b: (b[0], b[1], b[0]+b[2], b[1]+b[3]))
boxes = st.lists(box, min_size=1, max_size=4, unique=True)

@given(boxes, boxes, st.sampled_from(FRAMES), st.integers(0, 3))
def test_box_part_does_not_depend_on_the_frame(written, target, frame, n_invalid):
    sample = Sample("s", (), "Which?", "blue", tuple(target))
    def part(frame, **kw):
        own = true_boxes(Sample("s", (), "", "x", tuple(written)), frame, (200, 100)).tolist()
        p = Parsed("I look.", "blue", tuple(map(tuple, own)), well_formed=True, wrote_boxes=True, **kw)
        return base_rewards([Rollout(Stream.GROUNDED, [], [], "", parsed=p)], sample, frame, (200, 100))[0].parts
    parts = part(frame)
    assert parts["format"] == parts["accuracy"] == 1.
    assert math.isclose(parts["box"], part(Frame.original(200, 100))["box"], abs_tol=1e-9)
    assert parts["box"] <= float(paper_box_reward(written, target))+1e-9
    assert part(frame, invalid_boxes=n_invalid)["box"] <= parts["box"]

@pytest.mark.parametrize("text,right", [
    ("The answer is blue.", 1.), ("<think>I look.</think> Blue", 1.), ("<think>I look.</think><answer>blue", 1.),
    ("<answer>red</answer><answer>blue</answer>", 1.), ("<answer>blue</answer><answer>red</answer>", 0.),
    ("<think>It is blue", 0.), ("<think>blue</think>", 0.), ("", 0.)])
def test_format_needs_tags_and_accuracy_does_not(text, right):
    sample = Sample("s", (), "Which?", "blue")
    for stream in (Stream.TEXTUAL, Stream.UNPAIRED):
        rollout = Rollout(stream, [], [], text, parsed=parse(text, stream))
        parts = base_rewards([rollout], sample)[0].parts
        assert (parts["format"], parts["accuracy"]) == (0., right)

def test_parts_of_each_stream():
    sample = Sample("s", (), "Which?", "blue", ((0, 0, 10, 10),))
    roll = lambda stream: Rollout(stream, [], [], "", parsed=Parsed("I look.", "blue", well_formed=True))
    got = {s: base_rewards([roll(s)], sample, FRAMES[0], (100, 100))[0].parts for s in Stream}
    assert got == {Stream.GROUNDED: dict(format=1., accuracy=1., box=0.), Stream.UNPAIRED: dict(format=1., accuracy=1.),
                   Stream.TEXTUAL: dict(format=1., accuracy=1., consistency=None)}

# --- totals --------------------------------------------------------------------------------------------------------

part = st.one_of(st.none(), st.floats(0, 1))
parts = st.fixed_dictionaries(dict(format=st.floats(0, 1), accuracy=part, consistency=part))
group = st.lists(parts, min_size=1, max_size=8)
weights = st.fixed_dictionaries(dict.fromkeys(WEIGHTS, st.floats(0, 3)))

def totals_slowly(parts, weights):
    "The rule in words: a missing part is the mean of those that are there, or is not there at all"
    out = []
    for p in parts:
        total = 0.
        for name,value in p.items():
            have = [q[name] for q in parts if q[name] is not None]
            if have: total += weights[name]*(value if value is not None else math.fsum(have)/len(have))
        out.append(total)
    return out

@given(group, weights)
def test_totals_agree_with_the_rule(parts, weights):
    got = totals([Reward(p) for p in parts], weights)
    assert got.dtype==torch.float32 and got.shape==(len(parts),)
    assert torch.allclose(got, torch.tensor(totals_slowly(parts, weights)), atol=1e-5)

@given(group, st.randoms())
def test_missing_neither_helps_nor_hurts(parts, rng):
    full = [dict(p, format=1., accuracy=1.) for p in parts]  # all else equal
    r = totals([Reward(p) for p in full])
    centred = r-r.mean()
    assert all(abs(c)<1e-5 for c,p in zip(centred, full) if p["consistency"] is None)
    have = totals([Reward(p) for p in full if p["consistency"] is not None])
    if len(have): assert torch.allclose(have.mean(), r.mean(), atol=1e-5)  # nobody else's advantage is moved either
    order = list(range(len(parts)))
    rng.shuffle(order)
    assert torch.allclose(totals([Reward(full[i]) for i in order]), r[order], atol=1e-6)

def test_totals_of_the_unpaired_stream():
    assert totals([Reward(dict(format=1., accuracy=1.))], UNPAIRED_WEIGHTS).tolist() == [2.5]

def test_a_part_left_out_counts_as_missing():
    assert totals([Reward(dict(format=1., box=.5)), Reward(dict(format=1.))]).tolist() == [1.5, 1.5]

@pytest.mark.parametrize("parts,weights,named", [
    (dict(formt=1.), None, "'formt'"), (dict(format=math.inf), None, "inf"), (dict(format=math.nan), None, "nan"),
    (dict(format=1.), dict(format=math.nan), "nan"), (dict(format=1., box=1.), dict(format=1.), "'box'"),
    (dict(format=1.), dict(format=1., acuracy=1.), "'acuracy'")])
def test_bad_parts_are_named(parts, weights, named):
    with pytest.raises(InputError, match=named): totals([Reward(parts)], weights)
