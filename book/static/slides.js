/* Starts the slides once the formulas are set, and keeps every slide on the screen. */

const HEIGHT = 720;
const SMALLEST = 0.6;

/* A slide that is too high is shown smaller, in steps of 5 %. */
function fit(slide) {
  for (let scale = 1; scale >= SMALLEST; scale -= 0.05) {
    for (const cell of slide.children) {
      cell.style.zoom = scale;
    }
    slide.dataset.scale = scale.toFixed(2);
    if (slide.scrollHeight <= HEIGHT) {
      return;
    }
  }
}

function startSlides() {
  Reveal.initialize({
    width: 1280,
    height: HEIGHT,
    margin: 0.02,
    center: false,
    controls: true,
    progress: true,
    history: true,
    hash: true,
    slideNumber: "c/t",
    transition: "none",
    plugins: [RevealNotes],
  }).then(() => fit(Reveal.getCurrentSlide()));
  Reveal.on("slidechanged", (event) => fit(event.currentSlide));
}
