"""A server that speaks vLLM's dialect of the chat protocol, with adapters loaded on request, and fails as it is told. It samples with a
policy of its own, which sees nothing but what comes in over the socket and from the directories that it is told of."""
import base64,io,json
from pathlib import Path

import torch
from PIL import Image
from peft import set_peft_model_state_dict
from safetensors.torch import load_file

from ivgr.core import Stream
from ivgr.sampler import sample_rollouts
from ivgr.tree import Query, backbone

from fault_server import FaultServer

BROKEN = ["one-reply", "no-ids", "no-logprobs", "other-prompt", "aborted", "half-logprobs", "image-token", "endless", "not-a-number"]
LASTING = {"one-reply", "no-ids", "no-logprobs", "other-prompt"} # asking again is no use

class RolloutFake(FaultServer):
    "`heat` makes it sample from another distribution than the policy's, which its log-probabilities tell"
    def __init__(self, policy, fault=lambda i: None, heat=1., runtime=True, **kw):
        super().__init__(fault, **kw)
        self.policy,self.heat,self.runtime,self.adapters,self.log = policy,heat,runtime,{},[]

    def query(self, messages):
        "Images and prompt as vLLM makes them of a chat, with the model's own processor and template"
        p,(message,) = self.policy,messages
        urls = [part["image_url"]["url"] for part in message["content"] if part["type"]=="image_url"]
        images = [Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True))) for url in urls]
        feats = p.image_processor(images, return_tensors="pt")
        grid,token = feats["image_grid_thw"],p.tokenizer.convert_ids_to_tokens(p.config.image_token_id)
        content = [part if part["type"]=="text" else dict(type="image") for part in message["content"]]
        first,*rest = p.tokenizer.apply_chat_template([message|dict(content=content)], tokenize=False, add_generation_prompt=True).split(token)
        text = first+"".join(token*n+r for n,r in zip((grid.prod(-1)//p.image_processor.merge_size**2).tolist(), rest))
        ids = p.tokenizer(text, add_special_tokens=False)["input_ids"]
        kinds = torch.tensor([[int(i==p.config.image_token_id) for i in ids]])
        positions,_ = backbone(p.model)[0].get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=grid)
        return Query(ids[:-1], {Stream.UNPAIRED:ids[-1:]}, feats["pixel_values"], grid, positions[:,0,:-1])

    def answer(self, request, path, fault):
        said = lambda text,code=200: (f"{code} X", json.dumps(dict(error=dict(message=text, code=code))) if code!=200 else text)
        name = request.get("lora_name")
        self.log.append((path.removeprefix("/v1/"), name or request.get("model")))
        if path=="/v1/load_lora_adapter" and self.runtime:
            file = Path(request["lora_path"])/"adapter_model.safetensors"
            if name in self.adapters: return said(f"The lora adapter '{name}' has already been loaded.", 400)
            if not file.exists() or fault=="no-file": return said(f"Loading lora {name} failed: No adapter found for {request['lora_path']}", 404)
            self.adapters[name] = load_file(file)
            return said(f"Success: LoRA adapter '{name}' added successfully.")
        if path=="/v1/unload_lora_adapter" and self.runtime:
            if self.adapters.pop(name, None) is None: return said(f"The lora adapter '{name}' cannot be found.", 404)
            return said(f"Success: LoRA adapter '{name}' removed successfully.")
        if path!="/v1/chat/completions": return "404 Not Found",'{"detail":"Not Found"}'
        if request["model"] not in self.adapters: return said(f"The model `{request['model']}` does not exist.", 404)
        return "200 OK",json.dumps(self.complete(request, fault))

    def complete(self, request, fault):
        p,query = self.policy,self.query(request["messages"])
        set_peft_model_state_dict(p.model, self.adapters[request["model"]])
        rollouts, = sample_rollouts(p, [query], request["n"], request["max_tokens"], request["temperature"]*self.heat, request["top_p"],
                                    torch.Generator().manual_seed(request["seed"]))
        def choice(i, r):
            told = [dict(token=p.tokenizer.decode([t]), logprob=l, top_logprobs=[]) for t,l in zip(r.tokens, r.logps)]
            ids = list(r.tokens)
            if fault=="half-logprobs": told = told[:-1]
            if fault=="not-a-number": told[0]["logprob"] = "nan"
            if fault=="image-token": ids[0] = p.config.image_token_id
            if fault=="endless": ids[-1:],r.truncated = [ids[0]],False
            return dict(index=i, message=dict(role="assistant", content=r.text), finish_reason="length" if r.truncated else "stop" if fault!="aborted" else "abort",
                        logprobs=dict(content=told) if request.get("logprobs") and fault!="no-logprobs" else None,
                        token_ids=ids if request.get("return_token_ids") and fault!="no-ids" else None)
        choices = [choice(i, r) for i,r in enumerate(rollouts)][::-1]     # the order is not promised
        prompt = query.prefix+query.suffixes[Stream.UNPAIRED]
        if fault=="other-prompt": prompt = prompt[1:]
        return dict(id="x", object="chat.completion", created=0, model=request["model"], choices=choices[:1] if fault=="one-reply" else choices,
                    prompt_token_ids=prompt if request.get("return_token_ids") and fault!="no-ids" else None)
