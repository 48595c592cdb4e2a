"use strict";

const byId = (id) => document.getElementById(id);
const money = new Intl.NumberFormat("en", { style: "currency", currency: "EUR" });

/** Make an element; what it contains is text or elements, and never HTML. */
function make(tag, className, ...children) {
  const element = document.createElement(tag);
  element.className = className;
  element.append(...children);
  return element;
}

function kindOf(status) {
  return status < 400 ? "good" : "bad";
}

function showResult(status, message, kind) {
  byId("result").dataset.kind = kind;
  byId("status").textContent = status;
  byId("message").textContent = message;
}

function showBalances(accounts, transfers) {
  const before = new Map([...byId("balances").children].map((row) => [row.dataset.id, row.dataset.balance]));
  const rows = accounts.map((account) => {
    const row = make("div", "account", make("dt", "", account.name), make("dd", "", money.format(account.balance / 100)));
    row.dataset.id = account.id;
    row.dataset.balance = account.balance;
    const known = before.get(row.dataset.id);
    row.classList.toggle("changed", known !== undefined && known !== row.dataset.balance);
    return row;
  });
  byId("balances").replaceChildren(...rows);
  setTimeout(() => rows.forEach((row) => row.classList.remove("changed")), 1200);

  byId("summary").textContent = transfers === 1 ? "1 transfer is stored" : `${transfers} transfers are stored`;
}

function makeEntry(entry) {
  const badge = make("span", "badge", String(entry.status));
  const time = make("time", "", new Date(entry.time).toLocaleTimeString("en-GB"));
  time.dateTime = entry.time;

  const lines = entry.lines.map((line) => {
    const trouble = /ERROR|rollback|error handler/.test(line.source);
    return make("li", trouble ? "trouble" : "", make("span", "source", line.source), make("span", "", line.text));
  });

  const element = make("li", "entry", make("h3", "", badge, make("span", "", entry.title), time), make("ol", "", ...lines));
  element.dataset.number = entry.number;
  element.dataset.kind = kindOf(entry.status);
  return element;
}

/** Add what is new and remove what is gone, so that a screen reader reads the new entries only. */
function showLog(entries) {
  const log = byId("log");
  const wanted = new Set(entries.map((entry) => String(entry.number)));
  for (const element of [...log.children]) {
    if (!wanted.has(element.dataset.number)) element.remove();
  }

  const known = new Set([...log.children].map((element) => element.dataset.number));
  for (const entry of [...entries].reverse()) {
    if (!known.has(String(entry.number))) log.prepend(makeEntry(entry));
  }
  byId("empty").hidden = entries.length > 0;
}

async function refresh() {
  const response = await fetch(document.body.dataset.state, { cache: "no-store" });
  if (!response.ok) throw new Error(`The state was answered ${response.status}.`);
  const state = await response.json();
  showBalances(state.accounts, state.transfers);
  showLog(state.log);
}

async function attempt(action) {
  try {
    await action();
  } catch (error) {
    showResult("Failed", "The bank cannot be reached. Is it still running?", "bad");
    console.error(error);
  }
}

let busy = false;

async function submit(event) {
  event.preventDefault();
  if (busy) return;

  const form = event.currentTarget;
  const button = form.querySelector("button");
  busy = true;
  button.setAttribute("aria-disabled", "true");
  await attempt(async () => {
    const response = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)) });
    const isJson = response.headers.get("Content-Type")?.startsWith("application/json");
    const message = isJson ? (await response.json()).message : "The bank has failed. Its log says why.";
    showResult(`${response.status} ${response.statusText}`, message, kindOf(response.status));
    await refresh();
  });
  button.removeAttribute("aria-disabled");
  busy = false;
}

for (const form of document.forms) form.addEventListener("submit", submit);
attempt(refresh);
