/**
 * State that survives a reload.
 *
 * Invariant: without storage, or with a full one, the page works and does not keep its state. The conversation and the key
 * are kept until the tab closes (`session`), the settings across sessions (`lasting`).
 */

function box(storage) {
  return {
    get(name, fallback) {
      try {
        return JSON.parse(storage().getItem(`qwen3.${name}`)) ?? fallback;
      } catch {
        return fallback;
      }
    },
    set(name, value) {
      try {
        storage().setItem(`qwen3.${name}`, JSON.stringify(value));
      } catch {
        // Full or forbidden: keep nothing.
      }
    },
  };
}

// Functions, because accessing a forbidden storage throws.
export const session = box(() => sessionStorage);
export const lasting = box(() => localStorage);
