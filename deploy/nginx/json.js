// JSON before anybody parses it: what has too many parts for one who must look at each, or is too
// deep, is refused.

import shapes from 'shapes.js';

const MAX_PARTS = 100000;  // lists, strings, escapes

// `limits` are {objects, depth, advice}: how many, how deep, and what to do where there are more.

// The text without its strings, in which brackets and colons are what they seem.
function bare(text, limits) {
    const unescaped = without(without(text, '\\\\', limits), '\\"', limits);
    const pieces = split(unescaped, '"', 2 * MAX_PARTS, limits);
    return pieces.filter((_, index) => index % 2 === 0).join('');
}

// The number of keys as they are written, for JSON.parse takes the last of two that are the same
// and Triton the first.
function keysIn(text, limits) {
    const marks = bare(text, limits);
    split(marks, '{', limits.objects, limits);
    checkDepth(split(marks, '[', MAX_PARTS, limits), limits.depth);
    return split(marks, ':', MAX_PARTS, limits).length - 1;
}

// The depth is that of lists and objects together.
function bound(text, limits) {
    const opened = split(bare(text, limits), '{', limits.objects, limits).join('[');
    const lists = split(opened, '}', MAX_PARTS, limits).join(']');
    checkDepth(split(lists, '[', MAX_PARTS, limits), limits.depth);
}

function without(text, part, limits) {
    return text.indexOf(part) < 0 ? text : split(text, part, MAX_PARTS, limits).join('');
}

// Fast however many there are, as regular expressions in njs are not.
function split(text, separator, most, limits) {
    const pieces = text.split(separator, most + 1);
    if (pieces.length > most) {
        shapes.refuse(413, `The JSON has too many parts${limits.advice}.`);
    }
    return pieces;
}

// A list begins before each piece but the first, and ends with each bracket in one.
function checkDepth(pieces, most) {
    let depth = -1;
    pieces.forEach((piece) => {
        if (++depth > most) {
            shapes.refuse(400, 'The JSON is too deep.');
        }
        depth -= piece.indexOf(']') < 0 ? 0 : piece.split(']').length - 1;
    });
}

function parse(text) {
    try {
        return JSON.parse(text);
    } catch (error) {
        return shapes.refuse(400, 'The body is not JSON, or too deep.');
    }
}

function keys(value, what) {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        shapes.refuse(400, `${what} must be a JSON object.`);
    }
    return Object.keys(value);
}

function checkWritten(known, written) {
    if (known !== written) {
        shapes.refuse(400, 'A key stands twice, or an object where none belongs.');
    }
}

export default {keysIn, bound, parse, keys, checkWritten};
