"""The page of `ivgr app` in a real browser: Chromium without a window, driven over its debugging pipe, so no driver has to be installed."""
import base64,json,os,re,shutil,signal,subprocess,threading,time,urllib.request
from contextlib import contextmanager,suppress

import pytest,torch

from ivgr.policy import load_policy
from ivgr.serve import app
from ivgr.serve.app import AppServer,example_scenes,page_reply

from forked import command

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

class Tab:
    "A page of a browser"
    def __init__(self, process, read, write):
        self.process,self.read,self.write,self.n,self.buffer,self.session,self.events = process,read,write,0,b"",None,[]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"): self.call(f"{domain}.enable")

    def call(self, method, **params):
        "Send a command of the DevTools protocol, and wait for its result"
        self.n += 1
        message = dict(id=self.n, method=method, params=params)|(dict(sessionId=self.session) if self.session else {})
        os.write(self.write, json.dumps(message).encode()+b"\0")
        while True:
            while b"\0" not in self.buffer:
                part = os.read(self.read, 1<<16)
                assert part, "the browser has gone"
                self.buffer += part
            text,self.buffer = self.buffer.split(b"\0", 1)
            answer = json.loads(text)
            if answer.get("id")==self.n:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def js(self, code):
        "The value of an expression in the page"
        result = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, code, seconds=90):
        "Wait until an expression is true"
        end = time.monotonic()+seconds
        while not self.js(code):
            assert time.monotonic()<end, (code, self.js("document.body.innerText"))
            time.sleep(.1)

    def open(self, url):
        self.call("Page.navigate", url=url)
        self.until("document.readyState=='complete' && document.getElementById('policy')?.textContent!=''")

    def drop(self, name, kind, content):
        "Drop a file where the page wants it"
        data = base64.b64encode(content).decode()
        self.js(f"""(() => {{ const bytes = Uint8Array.from(atob({data!r}), c => c.charCodeAt(0)), dropped = new DataTransfer();
            dropped.items.add(new File([bytes], {name!r}, {{type: {kind!r}}}));
            for (const type of ["dragover", "drop"])
              document.getElementById("drop").dispatchEvent(new DragEvent(type, {{dataTransfer: dropped, bubbles: true, cancelable: true}})); }})()""")

    def ask(self, question):
        self.js(f"document.getElementById('question').value = {question!r}; document.getElementById('ask').click()")
        self.until("!document.getElementById('ask').disabled && document.getElementById('status').textContent==''")

    def texts(self, selector): return self.js(f"[...document.querySelectorAll({selector!r})].map(node => node.textContent)")
    def count(self, selector): return self.js(f"document.querySelectorAll({selector!r}).length")

    @property
    def message(self): return self.js("document.getElementById('message').hidden ? '' : document.getElementById('message').textContent")

@contextmanager
def chromium(profile):
    "A browser with one tab; commands go through file descriptor 3, answers come through 4"
    (theirs_in, write),(read, theirs_out) = os.pipe(),os.pipe()
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server",
             "--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}", "--remote-debugging-pipe"]
    line = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
    process = subprocess.Popen(["bash", "-c", line, "bash", BROWSER, *flags], pass_fds=(theirs_in, theirs_out),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Tab(process, read, write)
    finally:
        with suppress(ProcessLookupError): os.killpg(process.pid, 9)  # it is the leader of its own group
        process.wait(10)
        os.close(read)
        os.close(write)

@pytest.fixture(scope="module")
def policy():
    torch.set_num_threads(1)
    return load_policy(device="cpu")

@pytest.fixture(scope="module")
def scenes(): return example_scenes(3)

@pytest.fixture(scope="module")
def server(policy, scenes):
    server = AppServer(policy, port=0, scenes=scenes)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()

@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if BROWSER is None: pytest.skip("no Chromium is installed")
    with chromium(tmp_path_factory.mktemp("profile")) as tab: yield tab

@pytest.fixture
def tab(browser, server):
    browser.events.clear()
    browser.open(server.url)
    return browser

def expected(policy, scene, modes=("textual", "grounded", "crops")):
    url = "data:image/png;base64,"+base64.b64encode(scene.content).decode()
    return page_reply(policy, dict(image=url, question=scene.question, modes=list(modes)))

def complaints(tab):
    "What the browser itself found wrong: scripts that failed, contents that the page's policy forbids"
    tab.js("1")
    return [e for e in tab.events if e.get("method")=="Runtime.exceptionThrown" or e.get("params", {}).get("entry", {}).get("source")=="security"]

def test_a_picture_goes_in_and_answers_boxes_and_crops_come_out(tab, policy, scenes):
    right = expected(policy, scenes[1])
    tab.drop("tiles.png", "image/png", scenes[1].content)
    tab.until("document.getElementById('view').getBoundingClientRect().width>100")
    assert tab.count("#view rect")==0
    tab.ask(scenes[1].question)
    assert tab.message==""
    assert tab.texts(".reply h2")==["textual", "grounded", "crops"]
    assert tab.texts(".reply .answer")==[reply["answer"] for reply in right["replies"]]
    assert tab.texts(".reply .reasoning")==[reply["reasoning"] for reply in right["replies"]]
    assert tab.texts(".reply pre")==[reply["text"] for reply in right["replies"]]
    assert all(" tokens, " in pace and "tokens a second" in pace for pace in tab.texts(".pace"))
    x1,y1,x2,y2 = right["boxes"][0]
    drawn = tab.js("['x', 'y', 'width', 'height'].map(name => +document.querySelector('#view .box').getAttribute(name))")
    assert drawn==pytest.approx([x1, y1, x2-x1, y2-y1]) and tab.count("#view .box")==len(right["boxes"])
    # a box is where it belongs on the screen, too
    rect,image = (tab.js(f"(({{left, top, width, height}}) => [left, top, width, height])(document.querySelector({s!r}).getBoundingClientRect())")
                  for s in ("#view .box", "#view image"))
    assert image[2]>100 and rect[2]>10
    assert rect[0]-image[0]==pytest.approx(x1/right["width"]*image[2], abs=3) and rect[3]==pytest.approx((y2-y1)/right["height"]*image[3], abs=6)
    assert tab.count("#pictures img")==len(right["crops"])>0
    tab.until("[...document.querySelectorAll('#pictures img')].every(picture => picture.complete && picture.naturalWidth>0)")
    assert not complaints(tab)

def test_an_example_is_a_click_away(tab, policy, scenes):
    tab.until("document.querySelectorAll('#scenes button').length==3")
    tab.js("document.querySelectorAll('#scenes button')[2].click()")
    tab.until("document.getElementById('view').getBoundingClientRect().width>100")
    assert tab.js("document.getElementById('question').value")==scenes[2].question
    tab.js("document.querySelector('[value=crops]').click()")
    tab.ask(scenes[2].question)
    assert tab.texts(".reply .answer")==[reply["answer"] for reply in expected(policy, scenes[2], ("textual", "grounded"))["replies"]]
    assert tab.count("#pictures img")==0 and not complaints(tab)

def test_what_is_no_image_is_refused_and_the_page_goes_on(tab, scenes):
    tab.ask("What is this?")
    assert "no image yet" in tab.message
    tab.drop("notes.txt", "text/plain", b"no picture at all")
    tab.until("document.getElementById('message').textContent.includes('notes.txt')")
    tab.ask("What is this?")
    assert "can't be read (no known image format)" in tab.message and tab.count(".reply")==0
    tab.drop("half.png", "image/png", scenes[0].content[:200])
    tab.ask("What is this?")
    assert "can't be read" in tab.message and tab.count(".reply")==0
    tab.drop("tiles.png", "image/png", scenes[0].content)
    tab.ask(" ")
    assert "question is empty" in tab.message
    tab.ask("What colour is the hat?")
    assert "no word for hat" in tab.message and tab.count(".reply")==3

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

def test_what_a_policy_writes_is_text(tab, scenes, monkeypatch):
    def reply(policy, pictures, question, modes, **kw):
        return [dict(mode="textual", answer=EVIL, text=f"<think>{EVIL}</think><answer>{EVIL}</answer>", boxes=[], tokens=9, seconds=.1, truncated=False)]
    monkeypatch.setattr(app, "ask_about", reply)
    tab.drop(EVIL, "image/png", scenes[0].content)
    tab.ask(EVIL)
    assert tab.texts(".answer")==[EVIL] and EVIL in tab.texts(".reply pre")[0] and EVIL in tab.texts(".reasoning")[0]
    assert tab.count("#replies img, #replies script, #message img")==0
    assert tab.js("document.title")!="owned" and not complaints(tab)

def test_an_error_of_the_server_is_said(tab, scenes, monkeypatch, capsys):
    def fail(*a, **kw): raise RuntimeError("a wire is loose")
    monkeypatch.setattr(app, "ask_about", fail)
    tab.drop("tiles.png", "image/png", scenes[0].content)
    tab.ask("What?")
    assert "something went wrong" in tab.message and "a wire is loose" in capsys.readouterr().err

def test_the_command_serves_the_shipped_policy_until_it_is_stopped(tmp_path):
    process = command(tmp_path/"said", "app", "--port", "0")
    try:
        while process.running() and "(Ctrl-C ends it)\n" not in process.said.read_text(): time.sleep(.05)
        url = re.search(r"^ivgr app: (http://127.0.0.1:\d+) ", process.said.read_text(), flags=re.M)[1]
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"{url}/about", timeout=60) as answer: about = json.load(answer)
        assert about["policy"]=="tiny" and len(about["scenes"])==6
        process.send(signal.SIGINT)
        status,text = process.end(60)
        assert status==130 and "stopped by SIGINT" in text and "Traceback" not in text and "password" not in text
    finally: process.process.kill()
