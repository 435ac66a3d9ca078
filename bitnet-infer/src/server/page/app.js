// Ties the page together: which conversation is shown, and what each button does.

import { abandon, isRunning, runIn, start, stop, touch } from './answers.js';
import { askKeyWith, health } from './api.js';
import { TextPage, textOf } from './complete.js';
import { Composer, showProbabilities } from './composer.js';
import { announce, confirm, dismissable, notice, prompt } from './dialogs.js';
import { byId } from './dom.js';
import { wireFiles } from './files.js';
import { titleFrom } from './format.js';
import { chatRequest, completeRequest, withoutOldest } from './generate.js';
import { Follower } from './scroll.js';
import { describeServer } from './server.js';
import { SettingsSheet, readSettings } from './settings.js';
import { Drawer, drawList, showTheme } from './sidebar.js';
import * as store from './store.js';
import { errorBox, Thread } from './thread.js';
import { watchTokens } from './tokens.js';
import { drawWelcome } from './welcome.js';

const RETRY_MS = 2000;
const SAVE_TEXT_AFTER_MS = 400;

const settings = readSettings(store.loadSettings());
const drafts = new Map(); // conversation id, or NEW -> what stands in the message box
const NEW = 'new'; // One draft for all conversations that have not begun: they cannot be opened again.
let server = null;
let current = store.create(settings.mode);
let saveTimer = 0;
let retryTimer = 0;
let systemTouched = false;

const follower = new Follower(byId('scroller'), byId('jump'));
const drawer = new Drawer(byId('sidebar'), byId('main'), byId('menu'), byId('veil'));
const thread = new Thread(byId('thread'), { regenerate, shorten, edit, editSystem: () => openSettings(true) });
const textPage = new TextPage(byId('text-view'), { edited: textEdited, again: continueAgain });
const composer = new Composer({
  send,
  stop: () => stop(current),
  proceed: continueText,
  undo: undoText,
  again: continueAgain,
  mode: setMode,
});
const sheet = new SettingsSheet(settings, { changed: () => store.saveSettings(settings), systemChanged });

function context() {
  return { modelName: server?.model ?? 'Model', probabilities: settings.probabilities };
}

// Showing

/** Draws everything of the current conversation. */
function showConversation({ toEnd = true } = {}) {
  const run = runIn(current);
  byId('text-view').hidden = current.mode !== 'complete';
  byId('thread').hidden = current.mode !== 'chat';
  if (current.mode === 'chat') thread.show(current, context(), run);
  else textPage.show(current, context(), run);
  refresh();
  if (toEnd) follower.toEnd();
}

/** Brings all that surrounds the messages up to date. */
function refresh() {
  const empty = isEmpty(current);
  const title = current.title || (current.mode === 'chat' ? 'New conversation' : 'New text');
  byId('title').textContent = title;
  document.title = `${title} · BitNet`;
  showWelcome(empty);
  if (empty) drawWelcome(byId('welcome'), server, current.mode, { begin, complete: () => setMode('complete') });
  byId('legend').hidden = !settings.probabilities || empty;
  showProbabilities(byId('probabilities'), settings.probabilities);
  refreshDock();
  refreshList();
}

function showWelcome(shown) {
  byId('welcome').hidden = !shown;
  byId('scroller').classList.toggle('empty', shown);
}

function refreshDock() {
  composer.show({
    mode: current.mode,
    running: isRunning(current.id),
    ready: server !== null,
    canChat: server?.hasTemplate ?? false,
    canUndo: current.segments.at(-1)?.author === 'model',
    hasText: current.segments.length > 0,
  });
  composer.showContext(contextUsed(), server?.contextLength ?? null);
}

function refreshList() {
  const actions = { open: openConversation, rename, remove };
  drawList(byId('conversations'), store.list(), { current: current.id, running: isRunning, actions });
}

/** Tokens that the last answer and its prompt took; null before the first one. */
function contextUsed() {
  const parts = current.mode === 'chat' ? current.messages : current.segments;
  const stats = parts.findLast((part) => part.stats)?.stats;
  if (!Number.isFinite(stats?.promptTokens)) return stats ? lastKnown(parts) : null;
  return stats.promptTokens + (stats.completionTokens ?? stats.pieces ?? 0);
}

const lastKnown = (parts) => {
  const stats = parts.findLast((part) => Number.isFinite(part.stats?.promptTokens))?.stats;
  return stats ? stats.promptTokens + (stats.completionTokens ?? 0) : null;
};

const isEmpty = ({ messages, segments }) => messages.length === 0 && segments.length === 0;

// Running answers

/** What is seen of an answer, as long as its conversation is the one shown. */
const view = {
  begun(conversation, part, run) {
    if (current !== conversation) return;
    drawPart(part, run);
    refresh();
    follower.toEnd();
  },
  drawn(conversation, part, run) {
    if (current === conversation) drawPart(part, run);
  },
  ended(conversation, part) {
    if (current !== conversation) return refreshList();
    drawPart(part, null);
    refresh();
  },
};

function drawPart(part, run) {
  if (current.mode === 'chat') thread.draw(part, run);
  else textPage.draw(run);
}

// Chat

function send(text) {
  drafts.delete(draftKey());
  current.messages.push({ role: 'user', content: text });
  if (!current.title) current.title = titleFrom(text);
  thread.draw(current.messages.at(-1));
  answer();
}

function answer() {
  const request = chatRequest(server, current, settings);
  const message = { role: 'assistant', content: '', model: server.model };
  current.messages.push(message);
  start(current, message, request, view);
}

function regenerate(message) {
  if (!server?.hasTemplate) return;
  abandon(current);
  current.messages.splice(current.messages.indexOf(message));
  answer();
  byId('stop').focus();
}

/** Leaves the oldest turns out of what the model reads, and asks the last question again. */
function shorten(message) {
  const skipped = withoutOldest(current);
  if (skipped === null || !server?.hasTemplate) return;
  current.skipped = skipped;
  regenerate(message);
  showConversation();
}

/** An edited question is asked again; an edited answer stands as it is. Both drop what came after. */
function edit(message, text) {
  abandon(current);
  const at = current.messages.indexOf(message);
  current.messages.splice(at + 1);
  // What is asked again is read again, with all that stands in front of it.
  if (at < (current.skipped ?? 0)) delete current.skipped;
  message.content = text;
  if (message.role === 'user') {
    if (!current.named && at === 0) current.title = titleFrom(text);
    thread.draw(message);
    if (server?.hasTemplate) answer();
    else touch(current);
    return;
  }
  delete message.tokens;
  delete message.error;
  delete message.stats;
  message.edited = true;
  touch(current);
  showConversation({ toEnd: false });
}

function systemChanged(text) {
  current.system = text;
  systemTouched = true;
  if (!isEmpty(current)) touch(current);
}

// Completing a text

function textEdited() {
  const text = textOf(current.segments);
  if (!current.named) current.title = titleFrom(text.slice(0, 400));
  if (text === '' && !store.get(current.id)) refresh();
  else {
    clearTimeout(saveTimer);
    const edited = current;
    saveTimer = setTimeout(() => {
      if (edited.segments.length > 0 || store.get(edited.id)) touch(edited);
      refreshList();
    }, SAVE_TEXT_AFTER_MS);
    byId('title').textContent = current.title || 'New text';
    showWelcome(current.segments.length === 0);
    refreshDock();
  }
}

function continueText() {
  if (!server || isRunning(current.id) || current.segments.length === 0) return;
  if (!current.title) current.title = titleFrom(textOf(current.segments).slice(0, 400));
  const request = completeRequest(server, textOf(current.segments), settings);
  const segment = { author: 'model', content: '', model: server.model };
  current.segments.push(segment);
  start(current, segment, request, view);
}

function undoText() {
  if (current.segments.at(-1)?.author !== 'model') return;
  current.segments.pop();
  touch(current);
  showConversation();
  byId(settings.probabilities ? 'proceed' : 'text').focus();
}

function continueAgain() {
  if (current.segments.at(-1)?.author === 'model') current.segments.pop();
  textPage.show(current, context());
  continueText();
}

// Conversations

function begin(text) {
  if (current.mode === 'chat') {
    composer.text = text;
    composer.focus();
    return;
  }
  current.segments.push({ author: 'you', content: text });
  current.title = titleFrom(text);
  touch(current);
  showConversation();
  byId('text').focus();
}

const draftKey = () => (store.get(current.id) ? current.id : NEW);

function openConversation(id) {
  const conversation = store.get(id);
  if (conversation) goTo(conversation);
}

const newConversation = (mode = current.mode) => goTo(store.create(mode));

function goTo(conversation) {
  if (current.mode === 'chat') drafts.set(draftKey(), composer.text);
  current = conversation;
  store.noteOpen(current.id);
  composer.text = drafts.get(draftKey()) ?? '';
  showConversation();
  drawer.close();
  focusInput();
}

function focusInput() {
  if (!composer.enterSends) return; // On a phone the focus would bring up the keyboard.
  if (current.mode === 'chat') composer.focus();
  else byId('text').focus({ preventScroll: true });
}

/** A conversation keeps its mode; in one that has begun, the switch begins another. */
function setMode(mode) {
  settings.mode = mode;
  store.saveSettings(settings);
  if (mode === current.mode) return;
  if (isEmpty(current)) {
    current.mode = mode;
    showConversation();
  } else {
    newConversation(mode);
    notice(
      mode === 'chat'
        ? 'A new conversation was begun; the text is in the list.'
        : 'A new text was begun; the conversation is in the list.',
    );
  }
}

async function rename(id) {
  const conversation = store.get(id);
  const title = await prompt({ title: 'Rename', label: 'Title', value: conversation.title, action: 'Rename' });
  if (title === null) return;
  Object.assign(conversation, { title, named: true });
  store.save(conversation);
  refresh();
}

async function remove(id) {
  const conversation = store.get(id);
  const text = `“${conversation.title || 'Untitled'}” is kept only in this browser. It cannot be brought back.`;
  if (!(await confirm({ title: 'Delete this conversation?', text, action: 'Delete', danger: true }))) return;
  abandon(conversation);
  store.remove(id);
  drafts.delete(id);
  if (current.id === id) newConversation();
  else refreshList();
  announce('Conversation deleted.');
}

// The server

async function connect() {
  clearInterval(retryTimer);
  byId('server').textContent = 'Connecting…';
  try {
    server = await describeServer();
  } catch (error) {
    showTrouble(error);
    return;
  }
  byId('trouble').replaceChildren();
  byId('server').textContent = server.model;
  if (!server.hasTemplate && isEmpty(current)) current.mode = 'complete';
  showConversation();
}

/** Says what is wrong, and goes on by itself once the server is back. */
function showTrouble(error) {
  byId('server').textContent = 'Not connected';
  byId('trouble').replaceChildren(errorBox(error, connect));
  announce(error.message);
  refresh();
  if (error.kind !== 'network' && error.kind !== 'loading') return;
  retryTimer = setInterval(async () => {
    if ((await health()) === 'ready') connect();
  }, RETRY_MS);
}

function openSettings(focusSystem = false) {
  sheet.open({ defaults: server?.defaults, conversation: current, focusSystem });
}

// Wiring

store.reportTo((kind) => {
  const words = {
    off: 'This browser keeps nothing for this page: export what you want to have after it is closed.',
    full: 'The browser’s storage is full: what is new lasts until the page is closed. Export or delete something.',
    trimmed: 'The browser’s storage was full, so the token probabilities of older conversations were given up.',
  };
  notice(words[kind], { stays: true, id: kind });
});
store.watch((id) => {
  if (id === current.id && !isRunning(id) && store.get(id)) {
    current = store.get(id);
    showConversation({ toEnd: false });
  } else refreshList();
});
askKeyWith((refused) =>
  prompt({
    title: refused ? 'This key was refused' : 'The server wants an API key',
    text: 'It is the one that the server was started with. It is kept until this tab is closed.',
    label: 'API key',
    action: 'Use this key',
    secret: true,
  }),
);
watchTokens(byId('scroller'));

byId('new').addEventListener('click', () => newConversation());
byId('open-settings').addEventListener('click', () => openSettings());
byId('settings').addEventListener('close', () => {
  // Drawn anew only for a reason: an answer may just be edited.
  if (systemTouched && current.mode === 'chat') thread.show(current, context(), runIn(current));
  systemTouched = false;
});
byId('probabilities').addEventListener('click', () => {
  settings.probabilities = !settings.probabilities;
  store.saveSettings(settings);
  showConversation({ toEnd: false });
});
byId('theme').addEventListener('click', () => showTheme(byId('theme'), window.bitnetTheme.next()));
wireFiles({
  current: () => current,
  imported: (conversations) => (conversations.length > 0 ? openConversation(conversations[0].id) : refreshList()),
});
for (const id of ['settings', 'question', 'export-dialog']) dismissable(byId(id));
byId('text').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  continueText();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && !document.querySelector('dialog[open]')) stop(current);
});
showTheme(byId('theme'), window.bitnetTheme.current);
store.open();
current = store.lastOpen() ?? current;
store.noteOpen(current.id);
showConversation();
focusInput();
connect();
