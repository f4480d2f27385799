/** @file Words of the field, explained where a pointer rests on them. */

import { h } from "./dom.js";

const WORDS = {
  particle: "One of the K texts that are written side by side.",
  weight: "How much a text counts: how much more the target wants it than it was likely to be drawn.",
  ESS: "Effective sample size: how many equally weighted texts the population is worth, from 1 to K.",
  nats: "The unit of natural logarithms: 1 nat is a factor of e = 2.72.",
  "standard error": "How far an average is off, typically: the standard deviation over repetitions of it.",
  "s.e.": "Standard error: how far an average is off, typically.",
  "s.d.": "Standard deviation: how far single values lie from their mean, typically.",
  ancestor: "The particle of an earlier step that a particle was copied from or goes on with.",
  twist: "ψ: a guess, from a text so far, of how well it will please φ in the end. It steers the weights.",
  proposal: "q: the distribution that tokens are drawn from.",
};
const FOUND = new RegExp(`(?<![\\p{L}-])(${Object.keys(WORDS).join("|").replaceAll(".", "\\.")})(s?)(?![\\p{L}-])`, "giu");

/** A text in which each known word tells what it means, at its first place. @param {string} text @returns {(string | Node)[]} */
export function explained(text) {
  const [parts, seen] = [/** @type {(string | Node)[]} */ ([]), new Set()];
  let end = 0;
  for (const found of text.matchAll(FOUND)) {
    const word = Object.keys(WORDS).find((each) => each.toLowerCase() === found[1].toLowerCase());
    if (seen.has(word)) continue;
    seen.add(word);
    parts.push(text.slice(end, found.index), h("abbr", { title: WORDS[word] }, found[0]));
    end = found.index + found[0].length;
  }
  return [...parts, text.slice(end)];
}

/** The same in place of an element's text, where that is another. @param {Element} node @param {string} text */
export function explain(node, text) {
  if (node.textContent !== text) node.replaceChildren(...explained(text));
}
