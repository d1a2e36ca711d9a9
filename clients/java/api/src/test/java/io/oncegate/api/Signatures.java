package io.oncegate.api;

import java.lang.reflect.AnnotatedArrayType;
import java.lang.reflect.AnnotatedElement;
import java.lang.reflect.AnnotatedParameterizedType;
import java.lang.reflect.AnnotatedType;
import java.lang.reflect.AnnotatedWildcardType;
import java.lang.reflect.Constructor;
import java.lang.reflect.Executable;
import java.lang.reflect.Field;
import java.lang.reflect.Method;
import java.lang.reflect.Modifier;
import java.lang.reflect.ParameterizedType;
import java.lang.reflect.TypeVariable;
import java.util.Arrays;
import java.util.List;
import java.util.function.Function;
import java.util.stream.Collectors;
import java.util.stream.Stream;
import org.jspecify.annotations.Nullable;

/** What other code can use of a class, as text. What may be null is a part of it: Kotlin's compiler reads that. */
final class Signatures {
  private static final int SHOWN =
      Modifier.PUBLIC | Modifier.PROTECTED | Modifier.ABSTRACT | Modifier.STATIC | Modifier.FINAL;

  private Signatures() {}

  static boolean isPublic(Class<?> type) {
    return isVisible(type.getModifiers())
        && (type.getEnclosingClass() == null || isPublic(type.getEnclosingClass()))
        && !type.isSynthetic()
        && !type.isAnonymousClass();
  }

  private static boolean isVisible(int modifiers) {
    return Modifier.isPublic(modifiers) || Modifier.isProtected(modifiers);
  }

  static String of(Class<?> type) {
    String kind = type.isInterface() ? "interface " : type.isEnum() ? "enum " : "class ";
    StringBuilder written = new StringBuilder(modifiers(type.getModifiers()) + kind);
    written.append(type.getName()).append(parameters(type.getTypeParameters()));
    if (type.getSuperclass() != null && type.getSuperclass() != Object.class) {
      written.append(" extends ").append(name(type.getAnnotatedSuperclass()));
    }
    if (type.getInterfaces().length > 0) {
      written.append(" implements ").append(list(type.getAnnotatedInterfaces(), Signatures::name));
    }
    written.append('\n');
    Stream.of(
            Arrays.stream(type.getDeclaredFields()).filter(f -> isVisible(f.getModifiers())).map(Signatures::field),
            Arrays.stream(type.getDeclaredConstructors())
                .filter(c -> isVisible(c.getModifiers()))
                .map(Signatures::constructor),
            Arrays.stream(type.getDeclaredMethods())
                .filter(m -> isVisible(m.getModifiers()) && (!m.isSynthetic() || isDefaults(m)))
                .map(Signatures::method))
        .flatMap(members -> members.sorted())
        .forEach(member -> written.append("  ").append(member).append('\n'));
    return written.toString();
  }

  /** What callers in Kotlin call if they leave out arguments. */
  private static boolean isDefaults(Method method) {
    return method.getName().endsWith("$default");
  }

  private static String field(Field field) {
    return modifiers(field.getModifiers()) + name(field.getAnnotatedType()) + " " + field.getName();
  }

  private static String constructor(Constructor<?> made) {
    return modifiers(made.getModifiers()) + made.getDeclaringClass().getSimpleName() + arguments(made);
  }

  private static String method(Method method) {
    String parameters = parameters(method.getTypeParameters());
    return (method.isDefault() ? "default " : "")
        + modifiers(method.getModifiers())
        + (parameters.isEmpty() ? "" : parameters + " ")
        + name(method.getAnnotatedReturnType())
        + " "
        + method.getName()
        + arguments(method);
  }

  private static String arguments(Executable called) {
    String arguments = list(called.getAnnotatedParameterTypes(), Signatures::name);
    String thrown = list(called.getAnnotatedExceptionTypes(), Signatures::name);
    return "(" + arguments + (called.isVarArgs() ? "..." : "") + ")" + (thrown.isEmpty() ? "" : " throws " + thrown);
  }

  private static String modifiers(int modifiers) {
    int shown = Modifier.isInterface(modifiers) ? modifiers & SHOWN & ~Modifier.ABSTRACT : modifiers & SHOWN;
    return shown == 0 ? "" : Modifier.toString(shown) + " ";
  }

  private static <T> String list(T[] items, Function<T, String> write) {
    return Arrays.stream(items).map(write).collect(Collectors.joining(", "));
  }

  private static String parameters(TypeVariable<?>[] parameters) {
    return parameters.length == 0 ? "" : "<" + list(parameters, Signatures::parameter) + ">";
  }

  private static String parameter(TypeVariable<?> parameter) {
    return parameter.getName() + bounds(" extends ", parameter.getAnnotatedBounds());
  }

  private static String bounds(String word, AnnotatedType[] bounds) {
    List<String> shown = Arrays.stream(bounds).map(Signatures::name).filter(b -> !b.equals("java.lang.Object")).toList();
    return shown.isEmpty() ? "" : word + String.join(" & ", shown);
  }

  private static String nullable(AnnotatedElement of) {
    return of.isAnnotationPresent(Nullable.class) ? "@Nullable " : "";
  }

  private static String name(AnnotatedType type) {
    if (type instanceof AnnotatedArrayType array) {
      String nullable = nullable(array);
      return name(array.getAnnotatedGenericComponentType()) + (nullable.isEmpty() ? "" : " " + nullable) + "[]";
    }
    if (type instanceof AnnotatedParameterizedType generic) {
      String raw = ((ParameterizedType) generic.getType()).getRawType().getTypeName();
      return nullable(type) + raw + "<" + list(generic.getAnnotatedActualTypeArguments(), Signatures::name) + ">";
    }
    if (type instanceof AnnotatedWildcardType wildcard) {
      AnnotatedType[] lower = wildcard.getAnnotatedLowerBounds();
      return "?" + (lower.length > 0 ? bounds(" super ", lower) : bounds(" extends ", wildcard.getAnnotatedUpperBounds()));
    }
    return nullable(type) + type.getType().getTypeName();
  }
}
