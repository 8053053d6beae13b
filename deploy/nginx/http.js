// POST /v2/models/NAME/infer: the JSON at its beginning is read before Triton does.

import shapes from 'shapes.js';

const MAX_DEPTH = 24;
const MAX_OBJECTS = 1000;
const MAX_PARTS = 100000;  // lists, strings, escapes

function infer(r) {
    shapes.admit(r, () => check(r.requestBuffer, r.variables), '@http');
}

function check(body, variables) {
    if (!body || !body.length) {
        shapes.refuse(400, 'The body is empty.');
    }
    const length = headerLength(variables.http_inference_header_content_length, body.length);
    if (length > Number(variables.max_json)) {
        shapes.refuse(413, 'The JSON is too large; send tensors as binary data behind it.');
    }
    const text = body.toString('utf8', 0, length);
    const keys = keysIn(text);
    checkRequest(parse(text), keys, body.length);
}

// Where the JSON ends. nginx hands on the very header that is looked at here.
function headerLength(header, bytes) {
    if (header === undefined || header === '') {
        return bytes;
    }
    if (!/^\d{1,10}$/.test(header) || Number(header) < 1 || Number(header) > bytes) {
        shapes.refuse(400, 'Inference-Header-Content-Length must be a number within the body.');
    }
    return Number(header);
}

function parse(text) {
    try {
        return JSON.parse(text);
    } catch (error) {
        return shapes.refuse(400, 'The body is not JSON, or too deep.');
    }
}

// The number of keys as they are written, for JSON.parse takes the last of two that are the same
// and Triton the first. Each has a colon, seen once all strings are taken out. What has too many
// parts for one who must look at each is refused here, before anybody parses it.
function keysIn(text) {
    const unescaped = without(without(text, '\\\\'), '\\"');
    const pieces = split(unescaped, '"', 2 * MAX_PARTS);
    const bare = pieces.filter((_, index) => index % 2 === 0).join('');
    split(bare, '{', MAX_OBJECTS);
    checkDepth(split(bare, '[', MAX_PARTS));
    return split(bare, ':', MAX_PARTS).length - 1;
}

function without(text, part) {
    return text.indexOf(part) < 0 ? text : split(text, part, MAX_PARTS).join('');
}

// Fast however many there are, as regular expressions in njs are not.
function split(text, separator, most) {
    const pieces = text.split(separator, most + 1);
    if (pieces.length > most) {
        shapes.refuse(413, 'The JSON has too many parts; send tensors as binary data behind it.');
    }
    return pieces;
}

// A list begins before each piece but the first, and ends with each bracket in one.
function checkDepth(pieces) {
    let depth = -1;
    pieces.forEach((piece) => {
        if (++depth > MAX_DEPTH) {
            shapes.refuse(400, 'The JSON is too deep.');
        }
        depth -= piece.indexOf(']') < 0 ? 0 : piece.split(']').length - 1;
    });
}

function checkRequest(request, written, bytes) {
    let known = keys(request, 'The body').length + parameters(request);
    list(request.inputs).forEach((input, index) => {
        known += keys(input, `Input ${index}`).length + parameters(input);
        shapes.check(input.shape, bytes, index);
    });
    shapes.checkCount(list(request.inputs).length);
    list(request.outputs).forEach((output, index) => {
        known += keys(output, `Output ${index}`).length + parameters(output, true);
    });
    if (known !== written) {
        shapes.refuse(400, 'A key stands twice, or an object where none belongs.');
    }
}

function keys(value, what) {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
        shapes.refuse(400, `${what} must be a JSON object.`);
    }
    return Object.keys(value);
}

function list(value) {
    if (value !== undefined && !Array.isArray(value)) {
        shapes.refuse(400, 'Inputs and outputs must be lists.');
    }
    return value || [];
}

function parameters(holder, ofOutput) {
    if (holder.parameters === undefined) {
        return 0;
    }
    const names = keys(holder.parameters, 'Parameters');
    names.forEach((name) => {
        shapes.checkParameter(name, typeof holder.parameters[name] === 'string', ofOutput);
    });
    return names.length;
}

export default {infer};
