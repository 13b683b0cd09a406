"The cold start of real policies: random weights of every family, boxes in each one's own coordinates, restarts"
import json

import pytest,torch

from ivgr.core import Frame, InputError, rng_for
from ivgr.needle import NeedleConfig, attribute_question, box_text, make_scene, render
from ivgr.policy import load_policy, load_weights, save_policy
from ivgr.prompts import move_boxes, read_boxes
from ivgr.data.conversations import Conversations
from ivgr.train.runs import whole_checkpoints
from ivgr.train.sft import ColdStartConfig, Demonstrations, cold_start, count_data_tokens, demonstration_loss, pack_demonstrations

from test_qlora import FAMILIES,pytestmark,random_policy  # noqa: F401 (pytest reads pytestmark)

torch.set_num_threads(1)

@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    "Six images of two shapes, two questions about each, two demonstrations of each question; boxes in pixels of the file"
    folder = tmp_path_factory.mktemp("conversations")
    (folder/"images").mkdir()
    rng,rows = rng_for(0, "sft"),[]
    for i in range(6):
        tiles,specks = make_scene(rng, NeedleConfig(size=100))
        image = render(tiles, specks, 100)
        image = image.resize((200, 100)) if i%2 else image                # sides that no patch size divides
        image.save(folder/f"images/{i}.png")
        for n in (0, 2):
            q = attribute_question(rng, tiles, 100, n)
            x1,y1,x2,y2 = q.boxes[0]
            box = [x1*2, y1, x2*2, y2] if i%2 else [x1, y1, x2, y2]
            for text in (q.grounded.replace(box_text(q.boxes[0], 100), "<box>[{},{},{},{}]</box>".format(*box)), q.textual):
                rows.append(dict(images=[f"images/{i}.png"], conversations=[{"from":"human", "value":f"<image>\n{q.text}"},
                                 {"from":"gpt", "value":f"<think>{text}</think><answer>{q.answer}</answer>"}]))
    (folder/"set.json").write_text(json.dumps(rows))
    return folder

@pytest.mark.parametrize("family", FAMILIES)
def test_packed_or_not_every_family_learns_the_same(family, talks):
    policy = random_policy(family)
    demonstrations = Demonstrations(Conversations(talks))
    items = [demonstrations[0], demonstrations[1]]
    packed = [example for item in items for example in pack_demonstrations(policy, item)]
    alone = [example for item in items for d in item for example in pack_demonstrations(policy, [d])]
    assert len(packed)==(8 if family=="qwen3_5" else 2)                  # linear attention packs no trees
    fed = [sum(len(e.tree) for e in packed if e.demonstrations[0] in item) for item in items]
    assert fed==[count.fed for count in count_data_tokens(policy, demonstrations, progress=False)[:2]]
    n = sum(example.n_learned for example in packed)
    grads = []
    for forwards in ([packed], [[example] for example in alone]):
        policy.model.zero_grad()
        for examples in forwards: demonstration_loss(policy, examples, n)[0].backward()
        grads.append({k:p.grad.clone() for k,p in policy.model.named_parameters() if p.grad is not None})
    for k,g in grads[0].items(): assert (g-grads[1][k]).abs().max()<1e-3*(g.abs().max()+1e-6), k

@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_are_taught_where_the_model_sees_them(family, talks):
    policy = random_policy(family)
    demonstrations = Demonstrations(Conversations(talks))
    for item in (demonstrations[0], demonstrations[1]):
        first = item[0]
        query = pack_demonstrations(policy, item)[0].query
        assert query.frame==(Frame.resized(*(query.grid[0,[2,1]]*8).tolist()) if family=="qwen2_5_vl" else Frame.unit1000())
        taught = move_boxes(first.reply, Frame.original(*query.image_size), query.frame)
        (box,),invalid = read_boxes(taught, query.frame)
        sides = (query.frame.width, query.frame.height)
        off = [abs(a/n-b/m) for a,b,n,m in zip(box, first.sample.boxes[0], sides*2, query.image_size*2)]
        assert not invalid and max(off)<=.51/min(sides), (box, first.sample.boxes)

@pytest.mark.parametrize("family,settings", [("qwen2_5_vl", dict(quantise=4, lora_rank=4, lora_merger=True)), ("qwen2_5_vl", dict(tokens_per_forward=300)),
                                             ("qwen3_5", dict(lora_rank=4, lora_dropout=.5))])
def test_killed_and_resumed_it_ends_the_same(family, settings, talks, tmp_path):
    save_policy(random_policy(family), tmp_path/"start")
    def run(out, steps, **kw):
        args = ColdStartConfig(output_dir=str(tmp_path/out), data=str(talks), policy=str(tmp_path/"start"), learning_rate=1e-2, warmup_steps=0, max_steps=steps, save_steps=2,
                               per_device_train_batch_size=2, logging_steps=1, gradient_checkpointing=family=="qwen2_5_vl", use_cpu=True, **settings)
        return cold_start(args, progress=False, **kw)
    whole = run("whole", 4)
    run("stopped", 2)                                                     # the learning rate is constant, so the end is no other
    assert [p.name for p in whole_checkpoints(tmp_path/"stopped")]==["checkpoint-2"]
    resumed = run("stopped", 4, resume=True)
    for (name,a),b in zip(whole.model.named_parameters(), resumed.model.parameters()):  # packed bits read as numbers may be nan
        if a.requires_grad: assert torch.equal(a, b), name
    logs = [[json.loads(l)["loss"] for l in (tmp_path/out/"metrics.jsonl").read_text().splitlines()] for out in ("whole", "stopped")]
    assert logs[0]==logs[1] and len(logs[0])==4 and logs[0][3]<logs[0][0]
    load_policy(tmp_path/"stopped", device="cpu", quantise=settings.get("quantise"))

@pytest.mark.parametrize("family", FAMILIES)
def test_weights_find_their_places_under_whatever_names_they_were_saved(family, tmp_path):
    policy,other = random_policy(family),random_policy(family)
    for p in other.model.parameters(): p.data.zero_()
    save_policy(policy, tmp_path)
    load_weights(other.model, tmp_path)
    for (name,a),b in zip(policy.model.state_dict().items(), other.model.state_dict().values()): assert torch.equal(a, b), name

def test_nothing_is_learned_before_every_row_was_read(talks, tmp_path):
    rows = json.loads((talks/"set.json").read_text())
    rows[17]["conversations"][1]["value"] = "It is red."
    (talks/"broken.json").write_text(json.dumps(rows))
    settings = dict(data=str(talks/"broken.json"), policy="tiny", use_cpu=True)
    args = ColdStartConfig(output_dir=str(tmp_path/"run"), strict=True, **settings)
    with pytest.raises(InputError, match="broken.json', row 17: its reply is not"): cold_start(args, progress=False)
    assert not whole_checkpoints(tmp_path/"run")
    args = ColdStartConfig(output_dir=str(tmp_path/"skipped"), max_steps=1, per_device_train_batch_size=1, save_strategy="no", **settings)
    cold_start(args, progress=False)                                      # without it the row is passed over, and told
    report = json.loads((tmp_path/"skipped"/"data_report.json").read_text())
    assert report["rows"]==len(rows) and [list(rows) for rows in report["found"].values()]==[["17"]]
