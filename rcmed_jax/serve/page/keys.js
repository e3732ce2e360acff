// The dialog for an access key, for servers that want one.

import { onKeyWanted, setKey } from "./api.js";

const by = (id) => document.getElementById(id);

/** @param {() => void} changed called when the reader gave another key */
export function listen(changed) {
  onKeyWanted(ask);
  by("change-key").addEventListener("click", async () => {
    const given = await ask(false);
    if (given === null) return;
    setKey(given);
    changed();
  });
}

/** The key that the reader gives; null if none. */
function ask(wrong) {
  const dialog = by("key-dialog");
  by("key-wrong").hidden = !wrong;
  by("key").value = "";
  dialog.showModal();
  by("key").focus();
  return new Promise((done) => {
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "ok" ? by("key").value.trim() : "";
      by("key").value = "";
      dialog.returnValue = "";
      done(given || null);
    }, { once: true });
  });
}
