"The reader on replies that nobody foresaw, against slower readers written another way; prompts there and back"
import json
import re
import time
from dataclasses import replace

import pytest
from hypothesis import example,given,strategies as st

from ivgr.boxes import valid_boxes
from ivgr.core import Frame, Sample, Stream
from ivgr.prompts import Prompts, messages, parse, read_boxes, strip_placeholders

FULL = Frame.unit1000()
GOOD = "<think>t</think><answer>a</answer>"
BLOCK_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
SOUP = (*BLOCK_TAGS, "<box>", "</box>", "[1,2,3,4]", "[4,3,2,1]", "[1,2,3,1001]", "[]", "<", ">", "/", "think", "box",
        " ", "\n", "a")
# Mostly replies with the tags in their place and something in between; sometimes anything
def soup(hi): return st.lists(st.sampled_from(SOUP), max_size=hi).map("".join)
junk = st.one_of(st.just(""), st.sampled_from([" ", "\n", "a"]), soup(3))
boxy = st.lists(st.sampled_from(("<box>", "</box>", "<box>[1,2,3,4]</box>", *SOUP[6:])), max_size=8).map("".join)
tidy = st.tuples(junk, boxy, junk, junk, junk).map(lambda t: "{}<think>{}</think>{}<answer>{}</answer>{}".format(*t))
reply = st.one_of(soup(14), tidy, st.text())

def slow_blocks(text):
    "Walk over the pieces and keep track of what is open"
    pieces = re.split("(" + "|".join(BLOCK_TAGS) + ")", text)
    n = {t: pieces.count(t) for t in BLOCK_TAGS}
    think = answer = None
    if n["<think>"]==n["</think>"]==1 and text.index("<think>")<text.index("</think>"):
        think = text.split("<think>")[1].split("</think>")[0]
    if n["<answer>"]==n["</answer>"]==1:
        thinking = False
        for a,b,c in zip(pieces, pieces[1:], pieces[2:] + [""]):
            if a in ("<think>", "</think>"): thinking = a=="<think>"
            if a=="<answer>" and c=="</answer>" and not thinking: answer = b
    ok = re.fullmatch(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", text, re.DOTALL)
    return think, answer, bool(ok) and all(v==1 for v in n.values())

def slow_boxes(text):
    "Pairs by a pattern, numbers by JSON"
    pairs = re.findall(r"<box>((?:(?!</?box>).)*)</box>", text, re.DOTALL)
    good,bad = [],len(re.findall("</?box>", text)) - 2*len(pairs)
    for p in pairs:
        try: x1,y1,x2,y2 = json.loads(p.strip())
        except (ValueError, TypeError): bad += 1; continue
        x3,y3,x4,y4 = max(x1, 0),max(y1, 0),min(x2, 1000),min(y2, 1000)
        if -1<=x1<x2<=1001 and -1<=y1<y2<=1001 and x3<x4 and y3<y4: good.append((x3,y3,x4,y4))
        else: bad += 1
    return tuple(good), bad

@given(reply)
@example(GOOD)
@example("<think><answer></think></answer>")
@example("</think><think></think><answer></answer>")
def test_reads_what_slower_readers_read(text):
    p = parse(text, Stream.GROUNDED, FULL)
    think,answer,ok = slow_blocks(text)
    assert (p.think, p.answer, p.well_formed)==(think, None if answer is None else answer.strip(), ok)
    assert (p.boxes, p.invalid_boxes)==(slow_boxes(think) if think is not None else ((), 0))
    assert p.wrote_boxes>=("<box>" in text or "</box>" in text)
    if p.well_formed: assert p.think is not None and p.answer is not None
    for stream in (Stream.TEXTUAL, Stream.UNPAIRED):  # the same reply, and no box is read from it
        assert parse(text, stream)==replace(p, boxes=(), invalid_boxes=0)

@given(st.text(alphabet="ab <>/[],.+-e019\n\t\u00a0\u0661\U0001d7d9box"))
def test_whatever_is_tagged_is_counted_once(inside):
    boxes,invalid = read_boxes(f"<box>{inside}</box>", FULL)
    tags = len(re.findall("</?box>", inside))
    assert 1<=len(boxes)+invalid<=tags+2
    if not tags: assert len(boxes)+invalid==1
    if boxes: assert valid_boxes(boxes, FULL).all()

gap = st.sampled_from(["", " ", "\n", "\t ", "  "])
number = st.one_of(st.integers(0,1000), st.floats(0,1000), st.floats(0,1000,width=32))
written = st.sampled_from(["{!r}", "+{!r}"])

@given(st.lists(st.tuples(number,number,number,number), max_size=4), st.data())
def test_numbers_come_back_as_they_were_written(rows, data):
    rows = [r for r in rows if r[0]<r[2] and r[1]<r[3] and (r[2]-r[0])*(r[3]-r[1])>0]
    def sp(): return data.draw(gap)
    def cell(v): return sp() + data.draw(written).format(v) + sp()
    text = "so ".join(f"<box>{sp()}[{','.join(map(cell, r))}]{sp()}</box>" for r in rows)
    assert read_boxes(text, FULL)==(tuple(tuple(map(float, r)) for r in rows), 0)

@given(st.text(), st.sampled_from(range(3)), st.text(alphabet=" \n\t\r"))
def test_only_white_space_around_the_blocks(extra, where, space):
    parts = ["<think>t</think>", "<answer>a</answer>"]
    def at(s): return "".join(parts[:where] + [s] + parts[where:])
    assert parse(at(space), "textual").well_formed
    assert parse(at(extra), "textual").well_formed==(not extra.strip())

@given(st.text(), st.text())
def test_the_judge_gets_the_text_as_written(think, answer):
    if any(t in think+answer for t in BLOCK_TAGS): return
    p = parse(f"<think>{think}</think>\n<answer>{answer}</answer>", Stream.TEXTUAL)
    assert (p.think, p.answer, p.well_formed)==(think, answer.strip(), True)

LOOPS = ("<box>[", "<box>[1,2,3,4]", "<box>[1,1,1,1]</box>", "<box>[1,2,3,4]</box>", "<box>", "</box>", "<think>",
         "</think>", "<think><answer>", GOOD, "<", "< ", "</", "<|", " ", "\n", "1", "1.", "1e", "-", "1,", "[",
         "bbox_2d")

@pytest.mark.parametrize("unit", LOOPS)
def test_a_million_characters_take_seconds_at_most(unit):
    loop = (unit*(10**6//len(unit)+1))[:10**6]
    for text in (loop, "<" + loop, f"<think>{loop}</think><answer>x</answer>", f"<think><box>[{loop},1,1]</box></think>"):
        start = time.process_time()
        parse(text, Stream.GROUNDED, FULL)
        assert time.process_time()-start < 10

def test_placeholders_are_read_in_linear_time():
    n = 100_000
    start = time.process_time()
    assert strip_placeholders("<image>\n"*n + "Q?", n)=="Q?"
    assert time.process_time()-start < 2

plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{<"), min_size=1).filter(str.strip)

@given(grounded=plain, textual=plain, unpaired=plain, ending=st.sampled_from(["json","yaml","yml"]))
def test_prompt_files_keep_every_character(tmp_path_factory, grounded, textual, unpaired, ending):
    p = Prompts(grounded, textual, unpaired, before_question="\n")
    path = tmp_path_factory.getbasetemp()/f"prompts.{ending}"
    assert Prompts.load(p.save(path))==p

@given(st.text(st.characters(exclude_characters="<"), min_size=1).filter(str.strip), st.integers(1,3), st.booleans())
def test_the_streams_share_images_and_question(question, n, marked):
    s = Sample("s", ("a.png",)*n, "<image>\n"*n*marked + question, "x")
    turns = [messages(s, stream) for stream in Stream]
    assert all(len(t)==1 and t[0]["role"]=="user" for t in turns)
    for stream,(turn,) in zip(Stream, turns):
        *images,text = turn["content"]
        assert images==[{"type": "image"}]*n
        assert text["text"]==f"{question.strip()}\n{getattr(Prompts(), stream.value)}"
