// What a first-time visitor finds in the form. Several passages share words with the query but do not answer it.

export const EXAMPLE = {
  query: "How do I keep bread from going stale?",
  passages: [
    "A sourdough starter is a culture of wild yeast and lactic acid bacteria, fed with flour and water.",
    'Dealers call a quote "stale" when the market has moved and the price on the screen hasn\'t.',
    "Bread goes stale because its starch crystallises again and pushes water out to the crust; a loaf turns firm even in a sealed bag.",
    "The Bread Loaf Writers' Conference meets every summer near Middlebury, Vermont.",
    "To keep bread from going stale, store it in a paper bag at room temperature, or slice and freeze it. The refrigerator is the worst place: a little above freezing, starch crystallises soonest.",
    "Toasting makes stale bread soft again for a while: above 60 °C the starch crystals melt.",
  ],
};
