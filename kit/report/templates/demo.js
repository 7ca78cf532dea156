// A tile's probability and Grad-CAM, computed here: nothing leaves the browser.
import * as ort from "./onnxruntime-web/ort.wasm.bundle.min.js";

const SIDE = 96;
const demo = JSON.parse(document.getElementById("demo").textContent);
const $ = (id) => document.getElementById(id);

// One thread needs no headers from the server, and bytes need no media type for .wasm.
ort.env.wasm.numThreads = 1;

const session = (async () => {
  ort.env.wasm.wasmBinary = await bytesOf("onnxruntime-web/ort-wasm-simd-threaded.wasm");
  return ort.InferenceSession.create(new Uint8Array(await bytesOf("model.onnx")), {
    executionProviders: ["wasm"],
  });
})();

async function bytesOf(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`cannot load ${path}: the server says ${response.status}`);
  return response.arrayBuffer();
}

// The competition's own TIFF files: RGB, 8 bits a channel, uncompressed, interleaved (TIFF 6.0, 6).
function readTiff(bytes) {
  const view = new DataView(bytes);
  const little = view.getUint16(0) === 0x4949;
  const short = (at) => view.getUint16(at, little);
  const long = (at) => view.getUint32(at, little);
  const values = (entry) => {
    const size = { 1: 1, 3: 2, 4: 4 }[short(entry + 2)];
    const count = long(entry + 4);
    if (!size || count > bytes.byteLength) return [];
    const start = size * count > 4 ? long(entry + 8) : entry + 8;
    const read = { 1: (at) => view.getUint8(at), 2: short, 4: long }[size];
    return Array.from({ length: count }, (_, number) => read(start + size * number));
  };
  const directory = long(4);
  const tags = new Map();
  for (let number = 0; number < short(directory); number++) {
    const entry = directory + 2 + 12 * number;
    tags.set(short(entry), values(entry));
  }
  const layout = {
    width: [256, [SIDE]], height: [257, [SIDE]], "bits a channel": [258, [8, 8, 8]],
    compression: [259, [1], [1]], colours: [262, [2]], channels: [277, [3]], planes: [284, [1], [1]],
  };
  for (const [name, [tag, expected, usual]] of Object.entries(layout)) {
    const found = tags.get(tag) ?? usual ?? [];
    if (String(found) !== String(expected)) {
      throw new Error(`its ${name} (tag ${tag}) is ${found}, not ${expected}; PNG and JPEG work, too`);
    }
  }
  const [starts, lengths] = [tags.get(273) ?? [], tags.get(279) ?? []];
  const rgb = new Uint8Array(SIDE * SIDE * 3);
  let filled = 0;
  starts.forEach((start, number) => {
    const length = Math.min(lengths[number] ?? rgb.length, rgb.length - filled);
    rgb.set(new Uint8Array(bytes, start, length), filled);
    filled += length;
  });
  if (filled !== rgb.length) throw new Error("its pixels are cut off");
  return rgb;
}

// What the browser reads itself: PNG, JPEG and others, with the values that the file has.
async function readImage(blob) {
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  if (image.width !== SIDE || image.height !== SIDE) {
    throw new Error(`it has ${image.width}x${image.height} pixels, not ${SIDE}x${SIDE}`);
  }
  const context = new OffscreenCanvas(SIDE, SIDE).getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  return Uint8Array.from({ length: SIDE * SIDE * 3 }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);
}

async function readTile(blob) {
  const bytes = await blob.arrayBuffer();
  const head = String.fromCharCode(...new Uint8Array(bytes.slice(0, 2)));
  if (head === "II" || head === "MM") {
    try {
      return readTiff(bytes);
    } catch (error) {
      if (error instanceof RangeError) throw new Error("it is a TIFF file that is cut off");
      throw error;
    }
  }
  try {
    return await readImage(blob);
  } catch (error) {
    throw error instanceof DOMException ? new Error("it is not an image that can be read") : error;
  }
}

async function explain(rgb) {
  const planes = new Uint8Array(rgb.length);
  const area = SIDE * SIDE;
  for (let i = 0; i < rgb.length; i++) planes[(i % 3) * area + Math.floor(i / 3)] = rgb[i];
  const outputs = await (await session).run({ tiles: new ort.Tensor("uint8", planes, [1, 3, SIDE, SIDE]) });
  return { probability: outputs.probability.data[0], heat: outputs.map?.data };
}

// The same colours and opacity as in the run's page; grey is what the network does not see.
function overlaid(rgb, heat) {
  const pixels = new Uint8ClampedArray(SIDE * SIDE * 4).fill(255);
  const edge = Math.floor((SIDE - demo.crop) / 2);
  for (let place = 0; place < SIDE * SIDE; place++) {
    const [row, column] = [Math.floor(place / SIDE) - edge, (place % SIDE) - edge];
    const seen = row >= 0 && column >= 0 && row < demo.crop && column < demo.crop;
    const own = rgb.subarray(3 * place, 3 * place + 3);
    const strength = seen && heat ? heat[row * demo.crop + column] : 0;
    const colour = demo.colours[Math.min(255, Math.floor(256 * strength))];
    const grey = (own[0] + own[1] + own[2]) / 6 + 100;
    for (let channel = 0; channel < 3; channel++) {
      const opacity = demo.opacity * strength;
      const blended = (1 - opacity) * own[channel] + opacity * colour[channel];
      pixels[4 * place + channel] = Math.floor(seen ? blended : grey);
    }
  }
  return pixels;
}

function draw(canvas, pixels) {
  canvas.getContext("2d", { willReadFrequently: true }).putImageData(new ImageData(pixels, SIDE, SIDE), 0, 0);
}

function opaque(rgb) {
  return Uint8ClampedArray.from({ length: SIDE * SIDE * 4 }, (_, i) =>
    i % 4 === 3 ? 255 : rgb[3 * Math.floor(i / 4) + (i % 4)]);
}

let asked = 0;
async function show(name, load, label) {
  const number = ++asked;
  $("problem").hidden = true;
  $("name").textContent = `${name}: computing...`;
  try {
    const rgb = await readTile(await load());
    const { probability, heat } = await explain(rgb);
    // A later tile may have been asked for meanwhile.
    if (number !== asked) return;
    draw($("tile"), opaque(rgb));
    if (heat) {
      draw($("map"), overlaid(rgb, heat));
      $("blank").hidden = heat.some((strength) => strength > 0);
    }
    $("name").textContent = label === undefined ? name : `${name}, label: ${demo.class_names[label]}`;
    $("probability").textContent = probability.toFixed(4);
    $("bar").value = probability;
    const answer = probability > 0.5 ? 1 : 0;
    $("answer").textContent = `answer: ${demo.class_names[answer]}`;
    Object.assign($("answer").dataset, { name, probability });
    $("result").hidden = false;
  } catch (error) {
    if (number !== asked) return;
    $("name").textContent = "";
    $("result").hidden = true;
    $("problem").textContent = `${name}: ${error.message}`;
    $("problem").hidden = false;
  }
}

const showFile = (files) => files.length && show(files[0].name, async () => files[0]);
$("file").addEventListener("change", (event) => {
  showFile([...event.target.files]);
  // So that the same name can be chosen again.
  event.target.value = "";
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") showFile(event.dataTransfer.files);
  });
}
for (const button of document.querySelectorAll("[data-tile]")) {
  const { tile, label } = button.dataset;
  const load = async () => new Blob([await bytesOf(`tiles/${tile}.png`)]);
  button.addEventListener("click", () => show(tile, load, Number(label)));
}

$("start").hidden = true;
$("try").hidden = false;
session.then(
  () => { $("ready").textContent = "The network is loaded."; },
  (error) => {
    $("problem").textContent = `The network could not be loaded: ${error.message}`;
    $("problem").hidden = false;
  },
);
