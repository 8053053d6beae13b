// What no request may hold, whatever it is written in. A refusal is thrown as {status, why}, with a
// status of HTTP and a sentence, or '' for the status's own.

import upstream from 'upstream.js';

const MAX_INPUTS = 64;
const MAX_DIMS = 16;

function refuse(status, why) {
    throw {status: status, why: why};
}

// On to the location `next`, unless `check` throws a refusal. nginx.conf writes it out.
function admit(r, check, next) {
    try {
        check();
    } catch (refusal) {
        if (!refusal.status) {
            throw refusal;
        }
        r.variables.why = refusal.why;
        r.return(refusal.status);
        return;
    }
    upstream.choose(r);
    r.variables.next = next;
    r.internalRedirect(next);
}

// A tensor has no more elements than its request has bytes: so Triton makes no room for more.
function check(shape, bytes, index) {
    if (!Array.isArray(shape) || shape.length < 1 || shape.length > MAX_DIMS) {
        refuse(400, `The shape of input ${index} must have 1 to ${MAX_DIMS} dimensions.`);
    }
    let elements = 1;
    shape.forEach((dim) => {
        if (!Number.isInteger(dim) || dim < 1) {
            refuse(400, `The shape of input ${index} must hold whole numbers from 1 on.`);
        }
        elements *= dim;  // a double: too much is infinite, never little
    });
    if (elements > bytes) {
        refuse(400, `The shape of input ${index} is larger than the data of the request.`);
    }
}

function checkCount(inputs) {
    if (inputs > MAX_INPUTS) {
        refuse(400, `There are more than ${MAX_INPUTS} inputs.`);
    }
}

// Parameters of a request, an input or an output. Triton ends itself over a sequence id that is a
// string where the model wants a number, and over classes of an output that holds texts or nothing:
// which one does, only its answer would say.
function checkParameter(name, isString, ofOutput) {
    if (name === 'classification' && ofOutput) {
        refuse(400, 'Classification is not open to clients; ask for the output itself.');
    }
    if (name === 'sequence_id' && isString) {
        refuse(400, 'A sequence_id must be a number.');
    }
    if (name.startsWith('shared_memory_')) {
        refuse(400, 'Shared memory is not open to clients.');
    }
}

export default {admit, check, checkCount, checkParameter, refuse};
