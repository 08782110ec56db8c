// The page inside a notebook: a frame of its own, whose address holds what is chosen in it.

function render({ model, el }) {
  const frame = document.createElement("iframe");
  frame.title = "captum_lig: the page of a flow graph";
  frame.style.cssText = "width: 100%; border: 1px solid #8886; border-radius: 4px";
  // Not srcdoc: such a document has no address, and the page keeps its state there.
  const file = new Blob([model.get("document")], { type: "text/html" });
  const address = URL.createObjectURL(file);

  const resize = () => {
    frame.style.height = `${model.get("height")}px`;
  };
  // Where a notebook has no origin of its own the frame cannot be looked into: it is shown alone.
  const fragment = () => {
    try {
      return frame.contentWindow.location.hash.replace(/^#/, "");
    } catch {
      return null;
    }
  };
  const read = () => {
    model.set("state", fragment());
    model.save_changes();
  };
  const write = () => {
    const shown = fragment();
    const state = model.get("state");
    if (shown !== null && shown !== state) frame.contentWindow.location.hash = state;
  };

  frame.addEventListener("load", () => {
    if (fragment() !== null) frame.contentWindow.addEventListener("hashchange", read);
  });
  model.on("change:height", resize);
  model.on("change:state", write);
  resize();
  const state = model.get("state");
  frame.src = state ? `${address}#${state}` : address;
  el.append(frame);
  return () => {
    model.off("change:height", resize);
    model.off("change:state", write);
    URL.revokeObjectURL(address);
  };
}

export default { render };
