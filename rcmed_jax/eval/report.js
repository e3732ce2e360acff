for (const panes of document.querySelectorAll(".panes")) {
  panes.addEventListener("click", () => {
    const large = panes.closest(".card").classList.toggle("large");
    panes.setAttribute("aria-expanded", large);
    panes.scrollIntoView({block: "nearest"});
  });
}
