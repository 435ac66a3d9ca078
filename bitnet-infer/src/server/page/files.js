// Export and import: the dialog, the file that is chosen, and what is said about it.

import { notice } from './dialogs.js';
import { byId } from './dom.js';
import { plural } from './format.js';
import { download, fileName, fromJson, toJson, toMarkdown } from './portable.js';
import * as store from './store.js';

const MAX_IMPORT_BYTES = 50_000_000;

/** Wires the buttons. `current()` is the conversation shown, `imported(conversations)` hears of new ones. */
export function wireFiles({ current, imported }) {
  const dialog = byId('export-dialog');
  const choices = [...dialog.querySelectorAll('[data-export]')];
  byId('export').addEventListener('click', () => {
    const begun = current().messages.length + current().segments.length > 0;
    for (const choice of choices)
      choice.disabled = choice.dataset.export === 'all' ? store.list().length === 0 : !begun;
    dialog.showModal();
  });
  for (const choice of choices) {
    choice.addEventListener('click', () => {
      dialog.close();
      exportAs(choice.dataset.export, current());
    });
  }
  byId('import').addEventListener('click', () => byId('import-file').click());
  byId('import-file').addEventListener('change', async ({ target }) => {
    const [file] = target.files;
    if (file) await importFile(file, imported);
    target.value = ''; // The same file may be chosen again.
  });
}

function exportAs(what, conversation) {
  if (what === 'markdown') download(fileName(conversation.title, 'md'), toMarkdown(conversation), 'text/markdown');
  else if (what === 'json') download(fileName(conversation.title, 'json'), toJson([conversation]), 'application/json');
  else download('bitnet-conversations.json', toJson(store.list()), 'application/json');
}

async function importFile(file, imported) {
  try {
    if (file.size > MAX_IMPORT_BYTES) throw new Error('it is larger than a browser can keep');
    const conversations = fromJson(await file.text(), (id) => store.get(id) !== undefined);
    for (const conversation of conversations) store.save(conversation);
    notice(`Imported ${plural(conversations.length, 'conversation')}.`);
    imported(conversations);
  } catch (error) {
    notice(`${file.name} could not be imported: ${error.message}.`, { stays: true });
  }
}
