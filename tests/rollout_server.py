"""A server that speaks vLLM's dialect of the chat protocol, with adapters loaded on request, and fails on request. It samples with a
policy of its own, which sees nothing but the requests and the directories that they name."""
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
        "Status and body"
        name = request.get("lora_name")
        self.log.append((path.removeprefix("/v1/"), name or request.get("model")))
        if path=="/v1/load_lora_adapter" and self.runtime:
            return self.load(name, Path(request["lora_path"]), fault)
        if path=="/v1/unload_lora_adapter" and self.runtime:
            if self.adapters.pop(name, None) is None:
                return error(404, f"The lora adapter '{name}' cannot be found.")
            return "200 X",f"Success: LoRA adapter '{name}' removed successfully."
        if path!="/v1/chat/completions":
            return "404 Not Found",'{"detail":"Not Found"}'
        if request["model"] not in self.adapters:
            return error(404, f"The model `{request['model']}` does not exist.")
        return "200 OK",json.dumps(self.complete(request, fault))

    def load(self, name, path, fault):
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        file = path/"adapter_model.safetensors"
        if not file.exists() or fault=="no-file":
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        self.adapters[name] = load_file(file)
        return "200 X",f"Success: LoRA adapter '{name}' added successfully."

    def complete(self, request, fault):
        "The body of a chat completion"
        policy = self.policy
        query = self.query(request["messages"])
        set_peft_model_state_dict(policy.model, self.adapters[request["model"]])
        temperature = request["temperature"]*self.heat
        generator = torch.Generator().manual_seed(request["seed"])
        rollouts, = sample_rollouts(policy, [query], request["n"], request["max_tokens"], temperature, request["top_p"], generator)
        gives_ids = request.get("return_token_ids") and fault!="no-ids"
        gives_logprobs = request.get("logprobs") and fault!="no-logprobs"
        choices = [self.choice(i, r, fault, gives_ids, gives_logprobs) for i,r in enumerate(rollouts)][::-1]  # the order is not promised
        prompt = query.prefix+query.suffixes[Stream.UNPAIRED]
        if fault=="other-prompt": prompt = prompt[1:]
        if fault=="one-reply": choices = choices[:1]
        return dict(id="x", object="chat.completion", created=0, model=request["model"], choices=choices,
                    prompt_token_ids=prompt if gives_ids else None)

    def choice(self, i, rollout, fault, gives_ids, gives_logprobs):
        "One reply"
        decode = self.policy.tokenizer.decode
        content = [dict(token=decode([token]), logprob=logp, top_logprobs=[]) for token,logp in zip(rollout.tokens, rollout.logps)]
        ids = list(rollout.tokens)
        end = "length" if rollout.truncated else "stop"
        if fault=="half-logprobs": content = content[:-1]
        if fault=="not-a-number": content[0]["logprob"] = "nan"
        if fault=="image-token": ids[0] = self.policy.config.image_token_id
        if fault=="aborted" and end=="stop": end = "abort"
        if fault=="endless":
            ids[-1] = ids[0]
            end = "stop"
        return dict(index=i, message=dict(role="assistant", content=rollout.text), finish_reason=end,
                    logprobs=dict(content=content) if gives_logprobs else None, token_ids=ids if gives_ids else None)

def error(status, text):
    return f"{status} X",json.dumps(dict(error=dict(message=text, code=status)))
