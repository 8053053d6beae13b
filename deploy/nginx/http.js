// POST /v2/models/NAME/infer: the JSON at its beginning is read before Triton does.

import json from 'json.js';
import shapes from 'shapes.js';

const LIMITS = {objects: 1000, depth: 24, advice: '; send tensors as binary data behind it'};

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
    const written = json.keysIn(text, LIMITS);
    checkRequest(json.parse(text), written, body.length);
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

function checkRequest(request, written, bytes) {
    let known = json.keys(request, 'The body').length + parameters(request);
    list(request.inputs).forEach((input, index) => {
        known += json.keys(input, `Input ${index}`).length + parameters(input);
        shapes.check(input.shape, bytes, index);
    });
    shapes.checkCount(list(request.inputs).length);
    list(request.outputs).forEach((output, index) => {
        known += json.keys(output, `Output ${index}`).length + parameters(output, true);
    });
    json.checkWritten(known, written);
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
    const names = json.keys(holder.parameters, 'Parameters');
    names.forEach((name) => {
        shapes.checkParameter(name, typeof holder.parameters[name] === 'string', ofOutput);
    });
    return names.length;
}

export default {infer};
