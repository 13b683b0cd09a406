"Boxes on random input: what must hold for all of them"
import pytest
import torch
from hypothesis import assume,given,strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessorPil

from ivgr.core import Frame
from ivgr.prompts import read_boxes
from ivgr.boxes import (
    as_boxes, box_reward, box_rewards, clip_boxes, convert, distinct_boxes, model_frame,
    pairwise_iou, paper_box_reward, union_box, valid_boxes,
)

EPS = 1e-9

@st.composite
def box(draw, far=12):
    "Small whole numbers, so that equal, nested and equally good boxes are common; now and then anything"
    num = st.integers(0, far) if draw(st.integers(0,3)) else st.floats(0, far, width=32)
    xs,ys = (sorted((draw(num),draw(num))) for _ in range(2))
    assume(xs[1]-xs[0]>1e-3 and ys[1]-ys[0]>1e-3)
    return (float(xs[0]), float(ys[0]), float(xs[1]), float(ys[1]))

def boxes(lo=1, hi=6): return st.lists(box(), min_size=lo, max_size=hi)

sizes = st.integers(1, 8000)

@given(boxes(), boxes())
def test_iou_is_symmetric_and_bounded(a, b):
    iou = pairwise_iou(a, b)
    assert torch.equal(iou, pairwise_iou(b, a).T)
    assert ((iou>=0) & (iou<=1)).all()
    assert (pairwise_iou(a, a).diagonal()==1).all()

@given(boxes(), boxes(hi=3), st.data())
def test_an_exact_repeat_neither_pays_nor_costs(pred, gt, data):
    i = data.draw(st.integers(0, len(pred)-1))
    at = data.draw(st.integers(i+1, len(pred)))
    assert box_reward(pred[:at]+[pred[i]]+pred[at:], gt)==box_reward(pred, gt)

@given(boxes(4, 7), boxes(hi=3), st.integers(0,2), st.data())
def test_a_box_that_fits_no_target_better_never_pays(written, gt, n_invalid, data):
    def others(i): return written[:i]+written[i+1:]
    def fits_nothing_better(i): return (pairwise_iou(written[i:i+1], gt)[0] <= pairwise_iou(others(i), gt).amax(0)).all()
    spare = [i for i in range(len(written)) if fits_nothing_better(i)]
    i = data.draw(st.sampled_from(spare))  # there is always one, since there are more boxes than targets
    pred = others(i)
    extra = written[i]
    before = box_reward(pred, gt, n_invalid)
    after = box_reward(pred+[extra], gt, n_invalid)
    assert after<=before
    if extra not in pred and before>0: assert after<before

@given(boxes(), boxes(hi=3), st.floats(.5,1), st.data())
def test_a_shrunken_copy_inside_the_target_never_pays(pred, gt, share, data):
    "The near-copy that a policy would try first"
    x1,y1,x2,y2 = data.draw(st.sampled_from(gt))
    assume(all(pairwise_iou([g], [(x1,y1,x2,y2)])==0 for g in gt if g!=(x1,y1,x2,y2)))
    copy = (x1, y1, x1+share*(x2-x1), y2)
    pred = pred+[(x1,y1,x2,y2)]
    assert box_reward(pred+[copy], gt)<=box_reward(pred, gt)

@given(boxes(), boxes(hi=3))
def test_between_zero_and_the_papers_reward_of_the_distinct_boxes(pred, gt):
    ours,paper = box_reward(pred, gt),paper_box_reward(distinct_boxes(pred), gt)
    assert 0<=ours<=paper+EPS<=1+2*EPS

@given(st.lists(st.tuples(st.floats(-9,9), st.floats(-9,9)), min_size=1, max_size=5), st.randoms())
def test_the_papers_reward_where_every_box_has_a_target_of_its_own(shifts, random):
    gt = [(40*i, 0, 40*i+10, 10) for i in range(len(shifts))]
    pred = [(x1+dx, y1+dy, x2+dx, y2+dy) for (x1,y1,x2,y2),(dx,dy) in zip(gt, shifts)]
    random.shuffle(pred)
    assert abs(box_reward(pred, gt)-paper_box_reward(pred, gt))<EPS

@given(boxes(hi=4))
def test_only_the_whole_truth_is_worth_one(gt):
    gt = distinct_boxes(gt).tolist()
    assume((pairwise_iou(gt, gt).fill_diagonal_(0)<1).all())  # an IoU that rounds to 1 makes two targets for one box
    assert abs(box_reward(gt, gt)-1)<EPS
    if len(gt)>1: assert box_reward(gt[1:], gt)<1-EPS
    assert box_reward(gt+[(50,50,60,60)], gt)<1-EPS

@given(boxes(), boxes(hi=3), sizes, sizes)
def test_the_reward_is_the_same_in_every_frame(pred, gt, w, h):
    f,g = Frame.original(12,12),Frame.resized(w,h)
    iou = pairwise_iou(distinct_boxes(pred), gt)
    moved_pred = convert(pred, f, g)
    moved_gt = convert(gt, f, g)
    assert torch.allclose(iou, pairwise_iou(distinct_boxes(moved_pred), moved_gt), atol=EPS)
    if len(iou)==1 or (iou.topk(2, 0)[0].diff(dim=0).abs()>EPS).all():  # rounding may break a tie another way
        assert abs(box_reward(pred, gt)-box_reward(moved_pred, moved_gt))<EPS

@given(st.lists(st.tuples(*[st.integers(-9000,9000)]*4), min_size=1, max_size=5), sizes, sizes, sizes, sizes)
def test_there_and_back(rows, w, h, w2, h2):
    file = Frame.original(w,h)
    for other in (Frame.resized(w2,h2), Frame.unit1000()):
        back = convert(convert(rows, file, other), other, file)
        assert torch.allclose(back, as_boxes(rows, proper=False), rtol=1e-15, atol=0)
        assert back.round().long().tolist()==[list(r) for r in rows]

@pytest.mark.parametrize("patch", [14,16])
@given(w=st.integers(8,200), h=st.integers(8,200))
def test_the_frame_is_the_picture_that_the_processor_made(patch, w, h):
    limits = {"shortest_edge": 56*56, "longest_edge": 128*128}
    proc = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=limits)
    out = proc(images=[Image.new("RGB", (w,h))], return_tensors="pt")
    f = model_frame("qwen2_5_vl", out["image_grid_thw"][0], proc.patch_size)
    assert f.width*f.height*3==out["pixel_values"].numel()/proc.temporal_patch_size
    assert f.width%(2*patch)==f.height%(2*patch)==0
    assert convert([(0,0,w,h)], Frame.original(w,h), f).tolist()==[[0,0,f.width,f.height]]

@given(boxes())
def test_the_union_is_the_smallest_box_around_all(b):
    u,t = union_box(b),as_boxes(b)
    assert (u[:2]<=t[:,:2]).all() and (u[2:]>=t[:,2:]).all()
    assert set(u.tolist())<=set(t.flatten().tolist())
    assert torch.equal(union_box([u.tolist()]), u)

@given(boxes(), st.integers(1,14), st.integers(1,14))
def test_clipped_boxes_are_inside_or_empty(b, w, h):
    c = clip_boxes(b, w, h)
    f = Frame.original(w,h)
    inside = valid_boxes(c, f)
    meets = pairwise_iou(b, [(0,0,w,h)])[:,0]>0
    assert torch.equal(inside, meets)
    assert torch.equal(clip_boxes(c[inside], w, h), c[inside])
    kept = valid_boxes(b, f)
    rows = as_boxes(b)
    assert ((c[kept]-rows[kept]).abs()<=1).all()    # of what is valid, a pixel at most is cut off
    assert torch.equal(kept, inside & ((c-rows).abs()<=1).all(1))

def test_a_pixel_past_the_frame_costs_nothing():
    "A prediction is cut to its image as a target is"
    photo = Frame.original(224, 168)
    for box,worth in (("[20,30,224,168]", 1.), ("[20,30,225,169]", 1.), ("[20,30,226,168]", 0.), ("[-1,30,224,168]", 204/224)):
        boxes,invalid = read_boxes(f"<box>{box}</box>", photo)
        assert box_reward(boxes, [(20, 30, 224, 168)], invalid)==pytest.approx(worth)

@given(st.lists(boxes(0), min_size=1, max_size=4), boxes())
def test_tensors_are_worth_what_lists_are(preds, gt):
    "Repeats are recognised in either form"
    tensors = [torch.tensor(p).reshape(-1, 4) for p in preds]
    n_invalid = [0]*len(preds)
    assert torch.equal(box_rewards(tensors, gt, n_invalid), box_rewards(preds, gt, n_invalid))
