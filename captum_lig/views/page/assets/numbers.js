// The numbers of the page: typed arrays, out of a header and of deflated bytes in base64.

const TYPES = {
  float32: Float32Array,
  float64: Float64Array,
  uint8: Uint8Array,
  uint32: Uint32Array,
};

/**
 * Read what the page holds.
 * @param {object} header what `captum_lig.views.page.numbers` wrote; says where each tensor begins
 * @param {string} packed base64 of the deflated bytes
 * @returns the header, its layers with their tensors by name
 */
export async function unpack(header, packed) {
  const bytes = await inflate(fromBase64(packed));
  const layers = header.layers.map((layer) => ({ ...layer }));
  for (const { layer, name, type, size, offset } of header.tensors) {
    layers[layer][name] = unshuffle(bytes, offset, TYPES[type], size);
  }
  return { ...header, layers };
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text); // not yet in every browser
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = characters.charCodeAt(place);
  return bytes;
}

async function inflate(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** All first bytes of the numbers come first, then all second ones: that deflates better. */
function unshuffle(bytes, offset, Type, size) {
  const width = Type.BYTES_PER_ELEMENT;
  const joined = new Uint8Array(size * width);
  for (let byte = 0; byte < width; byte++) {
    const from = offset + byte * size;
    for (let place = 0; place < size; place++) joined[place * width + byte] = bytes[from + place];
  }
  return new Type(joined.buffer);
}
