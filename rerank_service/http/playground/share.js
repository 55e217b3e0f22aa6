export async function encodeState(state) { return btoa(unescape(encodeURIComponent(JSON.stringify(state)))); }
export async function decodeState(hash) { return JSON.parse(decodeURIComponent(escape(atob(hash)))); }
