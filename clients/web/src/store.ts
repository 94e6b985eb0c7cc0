/**
 * What this phone remembers: one IndexedDB database of named values. Writes of several names happen together or not at
 * all, and are on the disk before the promise is kept where the browser can say so.
 */
export interface Store {
  get<T>(name: string): Promise<T | undefined>;
  /** Write all of these at once; undefined forgets a name. */
  put(values: Readonly<Record<string, unknown>>): Promise<void>;
  /** Names that begin with `prefix`, in order. */
  names(prefix: string): Promise<string[]>;
  clear(): Promise<void>;
}

const DATABASE = "fedkd";
const TABLE = "values";

const done = <T>(request: IDBRequest<T>): Promise<T> =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the browser's storage failed"));
  });

const written = (transaction: IDBTransaction): Promise<void> =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage is full or was closed"));
  });

export async function openStore(name = DATABASE): Promise<Store> {
  const request = indexedDB.open(name, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(TABLE);
  const database = await done(request);
  database.onversionchange = () => database.close();
  const table = (): IDBObjectStore => database.transaction(TABLE).objectStore(TABLE);
  const change = (how: (table: IDBObjectStore) => void): Promise<void> => {
    const transaction = database.transaction(TABLE, "readwrite", { durability: "strict" });
    how(transaction.objectStore(TABLE));
    return written(transaction);
  };
  return {
    get: async <T>(key: string) => (await done(table().get(key))) as T | undefined,
    put: (values) =>
      change((all) => {
        for (const [key, value] of Object.entries(values)) value === undefined ? all.delete(key) : all.put(value, key);
      }),
    names: async (prefix) => (await done(table().getAllKeys(IDBKeyRange.bound(prefix, `${prefix}\uffff`)))).map(String),
    clear: () => change((all) => void all.clear()),
  };
}

/** The same without a disk, for tests. */
export function memoryStore(): Store {
  const values = new Map<string, unknown>();
  return {
    get: async <T>(key: string) => structuredClone(values.get(key)) as T | undefined,
    put: async (given) => {
      for (const [key, value] of Object.entries(given))
        value === undefined ? values.delete(key) : values.set(key, structuredClone(value));
    },
    names: async (prefix) => [...values.keys()].filter((key) => key.startsWith(prefix)).sort(),
    clear: async () => values.clear(),
  };
}
