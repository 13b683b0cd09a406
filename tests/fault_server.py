"""A chat server that scores pairs by a rule of its own, and fails on request: real sockets, one thread, no packages.

As a program, `python tests/fault_server.py LATENCY` serves until its input ends, and prints its address first."""
import asyncio,gzip,hashlib,json,math,sys,threading,time

SCORES = dict(A=1., B=.7, C=.3, D=0.)
FAULTS = ["500", "503-later", "429", "hang", "drip", "cut", "cut-body", "invalid", "shape", "empty", "prose", "article", "wrong-label",
          "huge", "no-logprobs", "latency", "401", "flood", "error-flood", "gzip", "elsewhere", "page"]
LASTING = {"empty", "prose", "article", "wrong-label", "huge", "no-logprobs", "401",
           "flood", "error-flood", "gzip", "elsewhere", "page"}  # asking again is no use: missing

FORMS = {"dot": "{}.", "bold": "**{}**", "bracket": "({})", "wide": "{}", "boxed": "$\\boxed{{{}}}$", "after thinking": "<think>A? B?</think>\n\n{}",
         "last line": "The candidate adds a tile.\n\n**{}**"}  # ways to write a label that are read
ERROR = '{"error": {"message": "told to fail"}}'

def label(user): return "ABCD"[hashlib.sha256(user.encode()).digest()[0]%4]

def truth(pair, expect=True):
    "The only right score of a pair"
    texts = {name:text for name,text in pair._asdict().items() if name!="kind"}
    l = label(json.dumps(texts, ensure_ascii=False))
    return .9*SCORES[l]+.1*SCORES["BCDC"["ABCD".index(l)]] if expect else SCORES[l]

class FaultServer:
    "`fault(i)` names the fault of the `i`-th request, or None; `with` starts and ends it"
    def __init__(self, fault=lambda i: None, latency=0., port=0, elsewhere="http://localhost:9/v1"):
        self.fault,self.latency,self.port,self.elsewhere = fault,latency,port,elsewhere

    def __enter__(self):
        self.seen,self.times,self.headers,self.open,self.most,self.sent = [],[],[],0,0,0  # `sent`: bytes of floods
        self.loop,self.tasks = asyncio.new_event_loop(),set()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        start = asyncio.start_server(self._talk, "127.0.0.1", self.port, limit=1<<24, backlog=512)
        self.server = self._await(start)
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_):
        async def end():
            self.server.close()
            for t in self.tasks: t.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
        self._await(end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def _await(self, job): return asyncio.run_coroutine_threadsafe(job, self.loop).result(10)

    async def _talk(self, reader, writer):
        task = asyncio.current_task()
        self.tasks.add(task)
        try:
            while await self._one(reader, writer): pass
        except (asyncio.IncompleteReadError, ConnectionError): pass
        except asyncio.CancelledError: pass
        finally:
            self.tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {k.lower():v.strip() for k,_,v in (line.partition(":") for line in head[1:])}
        request = json.loads(await reader.readexactly(int(fields["content-length"])))
        i = len(self.seen)
        self.seen.append(request)
        self.times.append(time.monotonic())
        self.headers.append(fields)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            if self.latency: await asyncio.sleep(self.latency)
            return await self._answer(writer, request, self.fault(i), head[0])
        finally: self.open -= 1

    def answer(self, request, path, fault):
        "Status and body where the connection does as it should; a fault may be one of the content"
        def reply(text, first=None, other="?", logprobs=True):
            top = [dict(token=first or text, logprob=math.log(.9)), dict(token=other, logprob=math.log(.1))]
            logprob_fields = dict(content=[dict(token=first or text, logprob=math.log(.9), top_logprobs=top)])
            choice = dict(index=0, finish_reason="stop", message=dict(role="assistant", content=text),
                          logprobs=logprob_fields if logprobs and request.get("logprobs") else None)
            return "200 OK",json.dumps(dict(id="x", object="chat.completion", created=0, model=request["model"], choices=[choice]))
        if path.removesuffix("?again")!="/v1/chat/completions": return "404 Not Found",ERROR
        l = label(request["messages"][1]["content"])
        if fault in FORMS:
            written = FORMS[fault].format(l if fault!="wide" else chr(ord(l)+0xfee0))
            return reply(written, first=l, other="BCDC"["ABCD".index(l)])
        if fault=="empty": return reply("", first="D")
        if fault=="prose": return reply("Score: 1.0. The candidate says the same.", first="Score")
        if fault=="article": return reply("A contradiction", first="A", other="B")
        if fault=="wrong-label": return reply("E", other="A")
        if fault=="huge": return reply("A"*1_000_000, first="A")
        if fault=="no-logprobs": return reply(l, logprobs=False)
        return reply(l, other="BCDC"["ABCD".index(l)])

    async def _answer(self, writer, request, fault, line):
        def send(body, status="200 OK", *more, length=None):
            body = body if isinstance(body, bytes) else body.encode()
            fields = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {length or len(body)}", *more]
            writer.write("\r\n".join([*fields, "", ""]).encode()+body)
        status,right = self.answer(request, line.split()[1], fault)
        if fault=="latency": await asyncio.sleep(.1)
        if fault=="500": send(ERROR, "500 Internal Server Error")
        elif fault=="503-later": send(ERROR, "503 Service Unavailable", "Retry-After: 0.2")
        elif fault=="429": send(ERROR, "429 Too Many Requests", "Retry-After: 0.2")
        elif fault=="401": send(ERROR, "401 Unauthorized")
        elif fault=="hang": await asyncio.sleep(60)
        elif fault=="drip":
            send(right[:1], length=len(right))
            for c in right[1:]:
                await asyncio.sleep(.05)
                writer.write(c.encode())
                await writer.drain()
        elif fault=="cut": return False
        elif fault=="cut-body":
            send(right[:-20], length=len(right))
            await writer.drain()
            writer.write_eof()
            await asyncio.sleep(.05)
            return False
        elif fault=="invalid": send(right[:-9])
        elif fault in ("flood", "error-flood"):  # 200 MB that begin as they should
            size = 200_000_000
            send(right[:-1], "200 OK" if fault=="flood" else "400 Bad Request", length=size)
            for _ in range(size//100_000):
                writer.write(b" "*100_000)
                await writer.drain()
                self.sent += 100_000
            return False
        elif fault=="page": send("<!DOCTYPE html><html><title>Sign in</title></html>")
        elif fault and fault[:3].isdigit(): send(fault[4:], f"{fault[:3]} Told")  # "404 and the server's own words"
        elif fault=="gzip": send(gzip.compress(right.encode()), "200 OK", "Content-Encoding: gzip")
        elif fault=="elsewhere": send("", "307 Temporary Redirect", f"Location: {self.elsewhere}/chat/completions")
        elif fault=="here": send("", "307 Temporary Redirect", f"Location: {line.split()[1]}?again")
        elif fault=="shape": send('{"choices": [], "score": 1.0}')
        else: send(right, status)
        await writer.drain()
        return True

if __name__=="__main__":
    with FaultServer(latency=float(sys.argv[1])) as server:
        print(server.url, flush=True)
        sys.stdin.read()
