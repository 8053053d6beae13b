/* x times the normal distribution's probability of less than x (arXiv:1606.08415). */

/* To 4e-7, by a quotient of polynomials in x^2 that is 1 from 4 on; its numbers are those of the
 * error function in Eigen and XLA. */
INLINE Vector error_function(Vector x) {
    Vector small = either(x > 4.0f, all(4), x);
    small = either(small < -4.0f, all(-4), small);
    Vector square = small * small, p = all(-2.72614225801306e-10f);
    p = p * square + 2.77068142495902e-08f;
    p = p * square - 2.10102402082508e-06f;
    p = p * square - 5.69250639462346e-05f;
    p = p * square - 7.34990630326855e-04f;
    p = p * square - 2.95459980854025e-03f;
    p = p * square - 1.60960333262415e-02f;
    Vector q = all(-1.45660718464996e-05f);
    q = q * square - 2.13374055278905e-04f;
    q = q * square - 1.68282697438203e-03f;
    q = q * square - 7.37332916720468e-03f;
    q = q * square - 1.42647390514189e-02f;
    return small * p / q;
}

INLINE Vector gelu_of(Vector x) {
    return x * 0.5f * (1.0f + error_function(x * 0.70710678118654752f));
}

/* Of the approximation by a hyperbolic tangent. */
INLINE Vector gelu_tanh_of(Vector x) {
    return x * sigmoid((x + x * x * x * 0.044715f) * 1.59576912f);
}
