// OpenAI's interface. The gateway checks what bodies say; it is spared those that only keep it busy.

import json from 'json.js';
import shapes from 'shapes.js';

const LIMITS = {objects: 10000, depth: 64, advice: ''};

function ask(r) {
    shapes.admit(r, () => {
        if (r.requestBuffer) {
            json.bound(r.requestBuffer.toString('utf8'), LIMITS);
        }
    }, '@openai');
}

export default {ask};
