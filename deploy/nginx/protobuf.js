// As much of Protocol Buffers as it takes to walk a message, and no more lenient than that: what
// two readers could take in two ways is refused.
// https://protobuf.dev/programming-guides/encoding/

import shapes from 'shapes.js';

const VARINT = 0;
const BYTES = 2;
const SIZES = {0: 0, 1: 8, 5: 4};  // of wire types; groups (3, 4) are long out of use
const MAX_FIELDS = 4096;

function malformed() {
    shapes.refuse(400, 'The message is malformed, or has too many fields.');
}

// The stretch of `bytes` that holds a message. Messages inside it count their fields with it.
function message(bytes, at, end) {
    return {bytes, at, end, count: {fields: 0}};
}

function inside(outer, field) {
    if (field.wire !== BYTES) {
        malformed();
    }
    return {bytes: outer.bytes, at: field.at, end: field.end, count: outer.count};
}

function text(outer, field) {
    const stretch = inside(outer, field);
    return stretch.bytes.toString('utf8', stretch.at, stretch.end);
}

// Calls visit({number, wire, value, at, end}) for each field: `value` of a varint, `at` and `end`
// of the rest.
function each(message, visit) {
    while (message.at < message.end) {
        visit(next(message));
    }
}

function next(message) {
    const tag = varint(message, 5);
    const number = Math.floor(tag / 8);
    const wire = tag % 8;
    const value = wire === VARINT ? varint(message, 10) : 0;
    const size = wire === BYTES ? varint(message, 5) : SIZES[wire];
    const at = message.at;
    message.at += size;
    if (++message.count.fields > MAX_FIELDS || number < 1 || number >= 1 << 29 ||
        !(message.at <= message.end)) {  // not for NaN, of an unknown wire type
        malformed();
    }
    return {number, wire, value, at, end: message.at};
}

// A whole number, never less than the one that is written: exact below 2^53; negative ones are
// written as 2^63 and more.
function varint(message, longest) {
    let value = 0;
    let factor = 1;
    for (let index = 0; index < longest && message.at < message.end; index++) {
        const byte = message.bytes[message.at++];
        value += (byte & 127) * factor;
        if (byte < 128) {
            return value;
        }
        factor *= 128;
    }
    return malformed();
}

export default {message, inside, text, each, varint, malformed, VARINT};
