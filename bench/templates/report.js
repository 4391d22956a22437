// Only the button for light and dark; the page reads and prints without it.
(() => {
  const root = document.documentElement, button = document.getElementById("theme");
  const system = () => matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const other = () => (root.dataset.theme || system()) === "dark" ? "light" : "dark";
  button.textContent = other();
  button.hidden = false;
  button.addEventListener("click", () => { root.dataset.theme = other(); button.textContent = other(); });
})();
