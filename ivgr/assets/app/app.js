// The page of `ivgr app`. What a policy, a file's name or the server says is text: only `textContent` writes it.
"use strict";
const at = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let image = null;  // Promise of the chosen file as a data URL
let chosen = 0;    // Number of the latest file, so that an older one does not show up late
let asked = 0;     // Number of the latest request, so that a late answer to an older one is dropped

function element(parent, tag, text, className) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  parent.append(node);
  return node;
}

function complain(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

function clearReplies() {
  asked += 1;
  at("replies").replaceChildren();
  at("pictures").replaceChildren();
  at("crops").hidden = true;
  at("status").textContent = "";
}

function drawPicture(url, width, height, boxes) {
  const view = at("view");
  view.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const add = (tag, attributes) => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    view.append(node);
  };
  view.replaceChildren();
  add("image", {href: url, width, height});
  for (const name of ["under", "box"]) {
    for (const [x1, y1, x2, y2] of boxes) add("rect", {x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: name});
  }
  view.toggleAttribute("hidden", false);  // an SVG has the attribute, but no property
  at("hint").hidden = true;
}

function readFile(file) {
  clearReplies();
  complain("");
  const number = ++chosen;
  const request = asked;
  const isCurrent = () => number === chosen && !at("replies").hasChildNodes();
  image = new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} can't be read`));
    reader.readAsDataURL(file);
  });
  image.then(url => {
    const picture = new Image();
    picture.onload = () => isCurrent() && drawPicture(url, picture.naturalWidth, picture.naturalHeight, []);
    picture.onerror = () => request === asked && refuse(file.name);  // TIFF, for one, is shown after the answer
    picture.src = url;
  }, error => complain(error.message));
}

function refuse(name) {
  at("view").toggleAttribute("hidden", true);
  at("hint").hidden = false;
  at("hint").textContent = name;
  complain(`Your browser can't show ${name}: if it is no image, asking will say so`);
}

function showReply(reply) {
  const card = element(at("replies"), "article", undefined, "reply");
  card.dataset.mode = reply.mode;
  element(card, "h2", reply.mode);
  element(card, "p", reply.answer === null ? "no answer" : reply.answer, "answer");
  element(card, "p", reply.reasoning, "reasoning");
  const cut = reply.truncated ? ", cut off" : "";
  element(card, "p", `${reply.tokens} tokens${cut}, ${reply.tokens_per_second.toFixed(0)} tokens a second`, "pace");
  const whole = element(card, "details");
  element(whole, "summary", "the reply as it came");
  element(whole, "pre", reply.text);
}

function show(result) {
  drawPicture(result.image, result.width, result.height, result.boxes);
  result.replies.forEach(showReply);
  for (const url of result.crops) element(at("pictures"), "img").src = url;
  document.querySelectorAll("#pictures img").forEach((node, k) => { node.alt = `crop ${k + 1}`; });
  at("crops").hidden = !result.crops.length;
  if (result.unknown.length) complain(`The policy has no word for ${result.unknown.join(", ")}: its answer means little`);
}

async function ask(event) {
  event.preventDefault();
  clearReplies();
  complain("");
  if (!image) return complain("There is no image yet: drop one");
  const number = asked;
  const modes = [...document.querySelectorAll("[name=mode]:checked")].map(box => box.value);
  const question = at("question").value;
  at("status").textContent = "asking …";
  at("ask").disabled = true;
  try {
    const body = JSON.stringify({image: await image, question, modes});
    const answer = await fetch("/ask", {method: "POST", headers: {"Content-Type": "application/json"}, body});
    const result = await answer.json();
    if (number !== asked) return;
    if (answer.ok) show(result); else complain(result.error);
  } catch (error) {
    if (number === asked) complain(`No answer (${error.message}): is ivgr app still running?`);
  } finally {
    at("ask").disabled = false;
    if (number === asked) at("status").textContent = "";
  }
}

async function chooseScene(scene) {
  at("question").value = scene.question;
  const content = await (await fetch(scene.url)).blob();
  readFile(new File([content], scene.url));
}

async function start() {
  const about = await (await fetch("/about")).json();
  at("policy").textContent = about.policy;
  for (const scene of about.scenes) {
    const button = element(at("scenes"), "button");
    const picture = element(button, "img");
    picture.src = scene.url;
    picture.alt = scene.question;
    button.title = scene.question;
    button.onclick = () => chooseScene(scene);
  }
  at("examples").hidden = !about.scenes.length;
}

at("form").onsubmit = ask;
at("file").onchange = () => { if (at("file").files.length) readFile(at("file").files[0]); at("file").value = ""; };
at("drop").ondragover = event => { event.preventDefault(); at("drop").classList.add("over"); };
at("drop").ondragleave = () => at("drop").classList.remove("over");
at("drop").onkeydown = event => { if (event.key === "Enter" || event.key === " ") at("file").click(); };
at("drop").ondrop = event => {
  event.preventDefault();
  at("drop").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file) readFile(file); else complain("That was no file: drop an image file");
};
document.onpaste = event => { if (event.clipboardData.files.length) readFile(event.clipboardData.files[0]); };
start();
