"The judge on a server: whatever the server does, a score is right or missing, and the call ends"
import asyncio,json,logging,math,os,random,signal,socket,sqlite3,subprocess,sys,threading,time,tracemalloc,warnings
from dataclasses import asdict,fields
from pathlib import Path

import pytest

from ivgr.core import InputError
from ivgr.serve.endpoint import EndpointConfig, EndpointJudge
from ivgr.judge import Pair

from fault_server import FAULTS,FORMS,LASTING,FaultServer,truth

KEY = "sk-never-to-be-seen"
FAST = dict(model="m", key=KEY, timeout=10., retries=4, backoff=.02, concurrency=16, budget=120.)  # limits for a busy machine
SLOW = {"hang", "drip"}                                                                           # needs a short time-out

@pytest.fixture(autouse=True)
def _direct(monkeypatch): monkeypatch.setenv("NO_PROXY", "*")

def judge_at(url, **kw): return EndpointJudge(EndpointConfig(url=url, **FAST|kw))
def some(n, tag=""): return [Pair("Where is it?", "The red tile is in the upper left.", f"candidate {tag}{i}") for i in range(n)]

def check(pairs, scores, expect=True):
    "Every score is the right one; how many are missing"
    assert len(scores)==len(pairs)
    for p,s in zip(pairs, scores): assert s is None or s==pytest.approx(truth(p, expect), abs=1e-9), p
    return scores.count(None)

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

@pytest.fixture
def loud():
    "The warnings of the judge"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield lambda: [str(w.message) for w in caught if "NO SCORE" in str(w.message)]

KIND = {"500":"server", "503-later":"server", "429":"busy", "hang":"timeout", "drip":"timeout", "cut":"connection",
        "cut-body":"connection", "invalid":"invalid", "shape":"invalid", "401":"rejected", "elsewhere":"rejected", "page":"rejected"}

@pytest.mark.parametrize("fault", [f for f in FAULTS if f!="latency"])
def test_a_server_that_always_fails(fault, loud):
    with FaultServer(lambda i: fault) as server:
        judge = judge_at(server.url, retries=1, timeout=.3 if fault in SLOW else 10.)
        start = time.monotonic()
        assert judge(some(40))==[None]*40
        assert time.monotonic()-start<10
    r = judge.report()
    kind = KIND.get(fault, "unreadable")
    assert {k for k in r if k.startswith("failed/")}=={f"failed/{kind}", "failed/skipped"}
    assert r["missing"]==40 and r["calls"]==r[f"failed/{kind}"]<80
    assert (r["retries"]==0)==(fault in LASTING)
    assert len(loud())==1 and kind in loud()[0]

@pytest.mark.parametrize("fault", [f for f in FAULTS if f not in LASTING])
def test_a_passing_fault_costs_no_score(fault):
    with FaultServer(lambda i: fault if i<12 else None) as server:
        judge,pairs = judge_at(server.url, timeout=.7 if fault in SLOW else 10.),some(30)
        assert check(pairs, judge(pairs))==0
    assert judge.report()["retries"]>=(0 if fault=="latency" else 12)

@pytest.mark.parametrize("scoring", ["expect", "sample"])
def test_three_in_ten_fail_in_every_way(scoring):
    rng = random.Random(0)
    faults = [rng.choice(FAULTS) if rng.random()<.3 else None for _ in range(9999)]
    pairs = some(200 if scoring=="expect" else 40)
    with FaultServer(lambda i: faults[i]) as server:
        judge = judge_at(server.url, scoring=scoring, timeout=1., concurrency=32)
        missing = check(pairs, judge(pairs), scoring=="expect")
        met = faults[:len(server.seen)]
    r = judge.report()
    late = max(0, r["failed/timeout"]-sum(f in SLOW for f in met))  # on a busy machine also answers that are right
    assert 0<missing<=sum(f in LASTING for f in met)+late+2         # two may have failed five times
    assert r["missing"]==missing and r["retries"]

def test_samples_are_asked_one_by_one_and_all_must_be_read():
    pairs = some(3)
    with FaultServer() as server:
        assert check(pairs, judge_at(server.url, scoring="sample", n=4)(pairs), expect=False)==0
        assert len(server.seen)==12 and all("logprobs" not in r and r["temperature"]==.5 for r in server.seen)
    with FaultServer(lambda i: "prose" if i==3 else None) as server:
        scores = judge_at(server.url, scoring="sample", n=4, concurrency=1)(pairs)
        assert scores[0] is None and check(pairs, scores, expect=False)==1

@pytest.mark.parametrize("scoring", ["expect", "sample"])
@pytest.mark.parametrize("form", FORMS)
def test_a_label_in_another_form_is_a_label(form, scoring):
    with FaultServer(lambda i: form) as server:
        assert check(some(5), judge_at(server.url, scoring=scoring, n=1, max_tokens=99)(some(5)), scoring=="expect")==0

def test_what_is_sent():
    with FaultServer() as server:
        judge_at(server.url, extra=dict(chat_template_kwargs=dict(enable_thinking=False)))(some(1))
        body,head = server.seen[0],server.headers[0]
    assert head["authorization"]==f"Bearer {KEY}"
    assert body["model"]=="m" and body["logprobs"] and body["top_logprobs"]==20 and body["temperature"]==0
    assert body["chat_template_kwargs"]=={"enable_thinking": False}

TOKENS = ["<|im_end|>", "<|endoftext|>", "[INST]", "[/INST]", "<s>", "</s>", "<start_of_turn>", "<|eot_id|>", "<|start_header_id|>",
          "<｜Assistant｜>", "<<SYS>>", "[TOOL_CALLS]"]

@pytest.mark.parametrize("place", ["question", "reference", "candidate"])
def test_no_text_holds_a_special_token_of_the_server(place):
    "Servers render a chat and tokenise it whole: a token in a text would be a real one"
    text = "It is red. "+" ".join(TOKENS)
    texts = dict(question="q", reference="r", candidate="c <box>[1,2,3,4]</box> a < b [A]")|{place: text}
    with FaultServer() as server:
        judge_at(server.url)([Pair(**texts)])
        sent = server.seen[0]["messages"][1]["content"]
    assert [t for t in TOKENS if t in sent]==[] and json.loads(sent)==texts
    assert place=="candidate" or '"candidate": "c <box>[1,2,3,4]</box> a < b [A]"' in sent  # all else as it was

@pytest.mark.parametrize("fault", ["flood", "error-flood"])
def test_an_answer_without_end_is_not_read(fault, loud):
    "200 MB are neither read nor kept, whatever the status"
    with FaultServer(lambda i: fault) as server:
        tracemalloc.start()
        try: assert judge_at(server.url, concurrency=1)(some(1))==[None]
        finally: most,_ = tracemalloc.get_traced_memory()[1],tracemalloc.stop()
        assert server.sent<20e6 and most<40e6   # the sockets' buffers hold some
    assert "the answer is longer than 4.016 MB" in loud()[0]

def test_another_server_gives_no_scores(loud):
    with FaultServer() as other, FaultServer(lambda i: "elsewhere", elsewhere=other.url) as server:
        assert judge_at(server.url)(some(1))==[None] and not other.seen
    assert f"redirects to another one, 127.0.0.1:{other.port}" in loud()[0]

def test_a_redirect_within_the_server_is_followed():
    with FaultServer(lambda i: "here" if i==0 else None) as server:
        assert check(some(1), judge_at(server.url)(some(1)))==0 and len(server.seen)==2

def test_what_is_no_score_in_a_cache_is_none(tmp_path):
    "A file by somebody else, without the check of ours"
    pairs,bad = some(7),[7., -1., "0.5", "high", b"1", math.inf, None]
    with FaultServer() as server:
        judge = judge_at(server.url, cache=tmp_path/"ours.sqlite")
        scores = judge(pairs)
        with sqlite3.connect(tmp_path/"theirs.sqlite") as db:
            db.execute("create table scores (key blob primary key, score)")
            db.executemany("insert into scores values (?, ?)", [(judge._key(p), b) for p,b in zip(pairs, bad)])
        theirs = judge_at(server.url, cache=tmp_path/"theirs.sqlite")
        assert theirs(pairs)==scores and len(server.seen)==14
        r = theirs.report()
        assert (r["cached"], r["failed/cache"])==(0, 7)
        assert judge_at(server.url, cache=tmp_path/"theirs.sqlite")(pairs)==scores and len(server.seen)==14  # mended

WORDS = {'401 {"error": {"message": "Incorrect API key provided: '+KEY+'"}}': "HTTP 401: Incorrect API key provided: ***",
         '404 {"object": "error", "message": "The model `m` does not exist."}': "HTTP 404: The model `m` does not exist.",
         '404 {"detail": "Not Found"}': "HTTP 404: Not Found",
         '400 {"error": "This model can give 5 logprobs at most"}': "HTTP 400: This model can give 5 logprobs at most",
         "403 <html><h1>Blocked</h1></html>": "HTTP 403: a web page", "400 no\x1b[2J\nway": "HTTP 400: no [2J way",
         "500 CUDA out of memory": "HTTP 500: CUDA out of memory",
         "page": "this is a web page, not an API"}

@pytest.mark.parametrize("fault", WORDS)
def test_the_servers_own_words(fault, loud):
    with FaultServer(lambda i: fault) as server: assert judge_at(server.url, retries=0)(some(1))==[None]
    message, = loud()
    assert WORDS[fault] in message and KEY not in message and message.isprintable() and "proxy" not in message

def clean(monkeypatch, **env):
    "An environment with these proxies and certificates alone"
    for name in [n for n in os.environ if n.lower().endswith("_proxy") or n.startswith("SSL_CERT")]: monkeypatch.delenv(name)
    for name,value in env.items(): monkeypatch.setenv(name, value)

def test_a_proxy_in_the_way_is_named(monkeypatch, loud):
    clean(monkeypatch, HTTP_PROXY=f"http://me:{KEY}@127.0.0.1:{free_port()}")
    url = f"http://localhost:{free_port()}/v1"
    judge_at(url, retries=0)(some(1))
    monkeypatch.setenv("NO_PROXY", "localhost")
    judge_at(url, retries=0)(some(1))
    with FaultServer(lambda i: "503 no route") as proxy:
        clean(monkeypatch, ALL_PROXY=f"http://127.0.0.1:{proxy.port}")
        judge_at("http://10.255.255.1:8000/v1", retries=0)(some(1))
    through,direct,refused = loud()
    assert "the proxy of HTTP_PROXY, perhaps set NO_PROXY=localhost" in through and "proxy" not in direct and KEY not in through
    assert "HTTP 503: no route; requests go through the proxy of ALL_PROXY, perhaps set NO_PROXY=10.255.255.1" in refused

@pytest.mark.parametrize("env,words", [
    (dict(ALL_PROXY=f"socks5://me:{KEY}@127.0.0.1:1"), r"\(ALL_PROXY\) can't be used .*socksio"), (dict(all_proxy="foo://x"), r"\(all_proxy\) can't"),
    (dict(HTTP_PROXY=f"http://me:{KEY}:c"), r"\(HTTP_PROXY\) can't"), (dict(SSL_CERT_FILE="/nowhere.pem"), "certificates.*SSL_CERT_FILE='/nowhere.pem'"),
    (dict(SSL_CERT_FILE=__file__), "certificates.*SSL_CERT_FILE=")])
def test_an_environment_that_cannot_work_is_named(monkeypatch, env, words):
    if "socksio" in words: monkeypatch.setitem(sys.modules, "socksio", None)
    clean(monkeypatch, **env)
    with pytest.raises(InputError, match=words) as e: judge_at("http://localhost:8000/v1")
    assert KEY not in str(e.value)

@pytest.mark.parametrize("url", ["http://localhost:8000/v1\n", "\nhttp://localhost:8000/v1", "http://local\thost/v1", "http://a/v1 ", "http://a/\x00"])
def test_an_address_in_one_word(url):
    with pytest.raises(InputError, match="url=.*: give an address like .*, without spaces or line ends"): judge_at(url)

def test_another_key_of_the_environment_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-server")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-of-another-server")
    with FaultServer() as server:
        judge_at(server.url, key="")(some(1))
        assert "sk-of-another-server" not in str(server.headers)

def test_as_many_at_once_as_allowed():
    with FaultServer(latency=.05) as server:
        judge_at(server.url, concurrency=8)(some(80))
        assert server.most==8 and len(server.seen)==80

def test_refused_for_a_while():
    port,pairs = free_port(),some(40)
    out = []
    thread = threading.Thread(target=lambda: out.append(judge_at(f"http://127.0.0.1:{port}/v1", retries=6, backoff=.1)(pairs)))
    thread.start()
    time.sleep(.4)
    with FaultServer(port=port): thread.join(15)
    assert check(pairs, out[0])==0

def test_down_up_and_down_again(loud):
    port = free_port()
    judge = judge_at(f"http://127.0.0.1:{port}/v1", retries=1)
    start = time.monotonic()
    for i in range(4): assert judge(some(2560, f"{i} "))==[None]*2560
    assert time.monotonic()-start<30 and len(loud())==1
    assert judge.report()["calls"]<=2*(16+16)+3  # a round of retries, then one pair a call
    with FaultServer(port=port) as server:
        assert check(some(50), judge(some(50)))==0 and len(server.seen)==50
    for i in range(2): assert judge(some(100, f"again {i} "))==[None]*100
    assert len(loud())==2

def test_a_few_bad_replies_are_no_alarm(loud):
    with FaultServer(lambda i: "prose" if i==30 else None) as server:
        judge = judge_at(server.url)
        assert judge(some(31)).count(None)==1
        server.fault = lambda i: "prose"
        assert judge(some(31)).count(None)==1
    assert loud()==[]

def test_the_budget_ends_a_call(loud):
    with FaultServer(lambda i: "hang" if i>=5 else None) as server:
        judge,pairs = judge_at(server.url, timeout=30., budget=1.),some(50)
        start = time.monotonic()
        missing = check(pairs, judge(pairs))
        assert missing>=45 and 1<time.monotonic()-start<10
    assert judge.report()["failed/budget"]==missing

def test_a_server_says_when_to_come_back():
    with FaultServer(lambda i: "429" if i==0 else None) as server:
        assert check(some(1), judge_at(server.url, backoff=0)(some(1)))==0
        assert server.times[1]-server.times[0]>=.2

def test_equal_pairs_are_asked_once():
    pairs = some(5)
    with FaultServer() as server:
        judge = judge_at(server.url)
        scores = judge(pairs*20)
        assert check(pairs*20, scores)==0 and len(server.seen)==5
        assert judge(pairs[::-1])==scores[:5][::-1] and len(server.seen)==5
        for kw in (dict(model="other"), dict(scoring="sample", n=1), dict(extra=dict(seed=1))): judge_at(server.url, **kw)(pairs)
        assert len(server.seen)==20

def test_inside_a_running_loop():
    async def main(): return judge_at(server.url)(some(3))
    with FaultServer() as server: assert check(some(3), asyncio.run(main()))==0
    assert not [t for t in threading.enumerate() if t.name=="requests"]

CHILD = """
import json,signal,sys
from ivgr.serve.endpoint import EndpointConfig,EndpointJudge
from ivgr.judge import Pair
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have turned it off for what runs in the background
settings,pairs = json.load(sys.stdin)
judge = EndpointJudge(EndpointConfig(**settings))
print("ready", flush=True)
print(json.dumps(judge([Pair(*p) for p in pairs])), flush=True)
"""

def child(url, pairs, **kw):
    env = os.environ|{"PYTHONPATH": str(Path(__file__).parent.parent)}
    p = subprocess.Popen([sys.executable, "-c", CHILD], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, text=True)
    p.stdin.write(json.dumps([FAST|dict(url=url)|kw, pairs]))
    p.stdin.close()
    p.stdin = None
    return p

def test_a_cache_outlives_processes_and_is_shared(tmp_path):
    pairs = some(300)
    with FaultServer() as server:
        children = [child(server.url, ps, cache=str(tmp_path)) for ps in (pairs[:200], pairs[100:])]
        for c,ps in zip(children, (pairs[:200], pairs[100:])):
            out,err = c.communicate(timeout=150)
            assert c.returncode==0, err
            assert check(ps, json.loads(out.splitlines()[1]))==0
        n_requests = len(server.seen)
        assert 300<=n_requests<=400
        judge = judge_at(server.url, cache=tmp_path)
        assert check(pairs, judge(pairs))==0 and len(server.seen)==n_requests
    assert judge.report()["cached"]==300

def test_ctrl_c_stops_at_once_and_keeps_the_scores(tmp_path):
    with FaultServer(lambda i: "hang" if i>=30 else None) as server:
        c = child(server.url, some(2560), cache=str(tmp_path), timeout=30., budget=60.)
        until = time.monotonic()+150
        while len(server.seen)<46 and time.monotonic()<until: time.sleep(.01)
        time.sleep(.1)
        start = time.monotonic()
        c.send_signal(signal.SIGINT)
        out,err = c.communicate(timeout=20)
        assert time.monotonic()-start<8  # the requests have 30 s
        assert c.returncode!=0 and "KeyboardInterrupt" in err and "never retrieved" not in err and KEY not in err+out
        server.fault = lambda i: None
        n_requests = len(server.seen)
        assert n_requests==46  # no more than were under way
        judge = judge_at(server.url, cache=tmp_path)
        assert check(some(46), judge(some(46)))==0
        assert judge.report()["cached"]==30 and len(server.seen)-n_requests==16

def test_a_cache_that_breaks_costs_no_score(tmp_path):
    with FaultServer() as server:
        judge = judge_at(server.url, cache=tmp_path)
        with sqlite3.connect(tmp_path/"judge.sqlite") as db: db.execute("drop table scores")
        assert check(some(5), judge(some(5)))==0
    assert judge.report()["failed/cache"]==6

def test_the_key_appears_nowhere(tmp_path, caplog, loud):
    caplog.set_level(logging.DEBUG)
    texts = []
    for fault in (None, "500", "401", "cut", "prose"):
        with FaultServer(lambda i: fault) as server:
            judge = judge_at(server.url, cache=tmp_path, retries=1)
            judge(some(3, fault or ""))
            texts += [repr(judge), str(judge), repr(judge.config), str(judge.report())]
            with pytest.raises(InputError) as e: judge(["no pair"])
            texts.append(str(e.value))
            assert server.headers[0]["authorization"].endswith(KEY)
    assert len(loud())==4
    assert KEY not in "".join(texts+loud())+caplog.text
    files = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert files and not any(KEY.encode() in f.read_bytes() for f in files)

def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(InputError, match=r"pip install 'ivgr\[judge\]'"): judge_at("http://127.0.0.1:1/v1")

def test_the_environment_says_where(monkeypatch):
    for k,v in dict(URL="http://127.0.0.1:1/v1", MODEL="m", KEY=KEY).items(): monkeypatch.setenv("IVGR_JUDGE_"+k, v)
    config = EndpointJudge().config
    assert (config.url, config.model, config.key)==("http://127.0.0.1:1/v1", "m", KEY)
    monkeypatch.delenv("IVGR_JUDGE_URL")
    with pytest.raises(InputError, match="IVGR_JUDGE_URL .--judge_url on the command line"): EndpointJudge()

def test_every_setting_can_come_from_the_environment(monkeypatch):
    values = dict(url="http://127.0.0.1:1/v1", model="m", key=KEY, scoring="sample", n=2, temperature=1.5, max_tokens=8, concurrency=3,
                  timeout=2.5, retries=0, backoff=.25, budget=7., cache="judge.sqlite", extra=dict(seed=1))
    assert set(values)=={f.name for f in fields(EndpointConfig)}
    for k,v in values.items(): monkeypatch.setenv("IVGR_JUDGE_"+k.upper(), json.dumps(v) if k=="extra" else str(v))
    assert asdict(EndpointConfig())==values
    assert EndpointConfig(n=5).n==5
    for name,value in dict(CONCURRENCY="many", TIMEOUT="30s", EXTRA="{").items():
        with monkeypatch.context() as m, pytest.raises(InputError, match=f"IVGR_JUDGE_{name}={value!r}: give"):
            m.setenv("IVGR_JUDGE_"+name, value)
            EndpointConfig()

def speed(n, latency=.2, slots=64):
    "Seconds over the least that latency allows; our processor seconds for a pair that is asked, and for a known one"
    server = subprocess.Popen([sys.executable, str(Path(__file__).parent/"fault_server.py"), str(latency)], text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        judge,pairs,wall,cpu = judge_at(server.stdout.readline().strip(), concurrency=slots, timeout=60.),some(n),[],[]
        judge(some(1, "to warm up "))
        for _ in range(2):
            start = time.monotonic(),time.process_time()
            scores = judge(pairs)
            wall.append(time.monotonic()-start[0])
            cpu.append(time.process_time()-start[1])
            assert check(pairs, scores)==0
    finally:
        server.stdin.close()
        server.wait(10)
    return wall[0]/(n/slots*latency),cpu[0]/n,cpu[1]/n

def test_speed():
    _,new,known = speed(128)  # processor time; a busy machine changes it less than the time on the clock
    assert new<.01 and known<1e-4

if __name__=="__main__":
    os.environ["NO_PROXY"] = "*"
    wall,new,known = speed(int(sys.argv[1]))
    print(f"{wall:.3f} x the ideal time; processor time a pair: {1e3*new:.2f} ms asked, {1e6*known:.1f} us known")
