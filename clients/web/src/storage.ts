/** A ledger's records in IndexedDB: each written whole, and on the disk, before anything that they speak of happens. */

import type { Head, Store } from "./ledger.js";

/** Open the store called `name`. Two pages may open it; of two that write, the second fails and nothing is lost. */
export async function openStore(name: string): Promise<Store> {
  const opening = indexedDB.open(name, 1);
  opening.onupgradeneeded = () => {
    for (const part of ["records", "payloads", "head"]) opening.result.createObjectStore(part);
  };
  const database = await settled(opening);
  return {
    async read() {
      const reading = database.transaction(["records", "head"], "readonly");
      const records = settled(reading.objectStore("records").getAll() as IDBRequest<string[]>);
      const head = settled(reading.objectStore("head").get("head") as IDBRequest<Head | undefined>);
      return { records: await records, head: (await head) ?? null };
    },
    async append(number, record, head, payload) {
      const writing = database.transaction(["records", "payloads", "head"], "readwrite", { durability: "strict" });
      writing.objectStore("records").add(record, number); // fails where another page has written this number
      writing.objectStore("head").put(head, "head");
      if (payload) writing.objectStore("payloads").put(payload.bytes.slice(), payload.id);
      await new Promise<void>((resolve, reject) => {
        writing.oncomplete = () => resolve();
        writing.onabort = () => reject(writing.error ?? new Error("aborted"));
      });
    },
    async payload(id) {
      const found = database.transaction("payloads", "readonly").objectStore("payloads").get(id);
      return ((await settled(found)) as Uint8Array | undefined) ?? null;
    },
  };
}

function settled<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("failed"));
  });
}
