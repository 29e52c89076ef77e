/**
 * What outlives a reload.
 *
 * Invariant: a browser without storage, or with a full one, only forgets. What is said here ends with the tab, the key
 * included; how it is said (`lasting`) is remembered.
 */

function box(storage) {
  return {
    get(name, otherwise) {
      try {
        return JSON.parse(storage().getItem(`qwen3.${name}`)) ?? otherwise;
      } catch {
        return otherwise;
      }
    },
    set(name, value) {
      try {
        storage().setItem(`qwen3.${name}`, JSON.stringify(value));
      } catch {
        // Full or forbidden: the page goes on without.
      }
    },
  };
}

// Functions, as even naming a forbidden storage throws.
export const session = box(() => sessionStorage);
export const lasting = box(() => localStorage);
